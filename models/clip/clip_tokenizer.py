"""CLIP's byte-pair tokenizer as a ``tokenizer.json``, so that a runtime can tokenise prompts with the ``tokenizers`` library alone."""

from __future__ import annotations

import gzip
import json
from importlib.util import find_spec
from pathlib import Path

from ...runtime.errors import InputError

BEGIN, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
MERGES = 48894  # 49152 - 256 bytes - 2 special tokens: the rest of the published list is not used
VOCABULARY = 49408
SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SAMPLE = ("a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407])
MAX_BYTES = 16 << 20


def byte_letters() -> list[str]:
    """A printable character for each of the 256 bytes, in CLIP's (GPT-2's) order: printable Latin-1 first, the others moved up to 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]


def tokenizer_json(merges: list[tuple[str, str]]) -> bytes:
    """A ``tokenizer.json``: lower case, words, bytes, merges in their order, begin and end tokens around.

    The vocabulary is CLIP's: the bytes, the bytes that end a word, one piece per merge, begin, end.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = byte_letters()
    pieces = [*letters, *(letter + WORD_END for letter in letters), *("".join(pair) for pair in merges), BEGIN, END]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=END, end_of_word_suffix=WORD_END, fuse_unk=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.post_processor = processors.TemplateProcessing(f"{BEGIN} $A {END}", special_tokens=[(piece, vocabulary[piece]) for piece in (BEGIN, END)])
    # Read back and written with sorted keys, so that the same merges always give the same bytes.
    return json.dumps(json.loads(tokenizer.to_str()), sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def whole_word_merges(words: list[str]) -> list[tuple[str, str]]:
    """Merges that make each of these words one piece, for tiny networks."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        left = word[0]
        for position, letter in enumerate(word[1:], 2):
            right = letter + (WORD_END if position == len(word) else "")
            merges[left, right] = None
            left += right
    return list(merges)


def published_tokenizer(path: str | Path | None) -> bytes:
    """CLIP's own tokenizer: from a file, or from the vocabulary that the open_clip package carries.

    Args:
        path: the ``tokenizer.json`` of ``openai/clip-vit-large-patch14``; None to use open_clip's.

    Raises:
        InputError: if neither is there, or the file is no CLIP tokenizer.
    """
    if path is not None:
        raw = _read(Path(path))
    else:
        spec = find_spec("open_clip")
        listed = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz" if spec and spec.submodule_search_locations else None
        if listed is None or not listed.is_file():
            raise InputError(
                "there is no CLIP tokenizer",
                wanted="the words' vocabulary, which no checkpoint holds",
                fix="--tokenizer FILE, the tokenizer.json of openai/clip-vit-large-patch14, or pip install 'fathom-depth[clip]'",
            )
        lines = gzip.decompress(listed.read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
        raw = tokenizer_json([tuple(line.split()) for line in lines])
    return _checked(raw, str(path or "open_clip's vocabulary"))


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path.name} has {path.stat().st_size:,} bytes", wanted="a tokenizer.json")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", wanted="a tokenizer.json") from error


def _checked(raw: bytes, where: str) -> bytes:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(raw.decode("utf-8"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        ids, size = tokenizer.encode(SAMPLE[0]).ids, tokenizer.get_vocab_size()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library is Rust: its panics are no Exception
        raise InputError(f"{where} is no tokenizer ({error})", wanted="CLIP's tokenizer.json") from error
    if ids != SAMPLE[1] or size != VOCABULARY:
        raise InputError(f"{where} is another network's tokenizer: {SAMPLE[0]!r} gives {ids[:8]}", wanted=f"CLIP's, which gives {SAMPLE[1]}")
    return raw
