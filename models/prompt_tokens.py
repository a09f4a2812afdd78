"""The words that occur in prompts of the networks with a BERT vocabulary, and their token ids.

Their prompts are assembled from a closed set: fixed sentences, seven distance words and whole numbers from 0 to 255. The ids of just
these word pieces, as bert-base-uncased numbers them, are facts kept in ``keys/bert_prompt_words.json``; greedy longest-match
tokenising gives the same ids with this part of the vocabulary as with all 30,522 pieces, because every longest match is in it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

DEPTH_CLASSES = ("giant", "extremely close", "close", "not in distance", "a little remote", "far", "unseen")
OTHER_CLASSES = (  # DepthBLIP-2, table 2
    ("extremely close", "close", "middle", "a little far", "far", "quite far", "unseen"),
    ("extremely close", "very close", "close", "a little close", "a little far", "far", "unseen"),
    ("giant", "close", "a little close", "not in distance", "a bit remote", "far", "unseen"),
)
OTHER_WORDS = {"very": 2200, "middle": 2690, "bit": 2978, "quite": 3243}  # their ids in bert-base-uncased
BERT_VOCABULARY = 30522
PAD, UNKNOWN, BEGIN, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"


@cache
def bert_words() -> dict[str, int]:
    """Word piece -> id of bert-base-uncased, for every piece that a prompt can hold."""
    return json.loads((Path(__file__).parent / "keys" / "bert_prompt_words.json").read_text())


@cache
def compact_words() -> dict[str, int]:
    """The same pieces numbered from 0 without gaps, for tiny networks."""
    return {piece: number for number, piece in enumerate(bert_words())}


@cache
def class_words(compact: bool) -> dict[str, int]:
    """``bert_words`` or ``compact_words``, with those of ``OTHER_WORDS``, which in tiny networks take the places of the first numbers: no distance
    is described with digits."""
    if not compact:
        return bert_words() | OTHER_WORDS
    return compact_words() | {word: compact_words()[str(place)] for place, word in enumerate(OTHER_WORDS)}


def sentence_ids(sentence: str, words: dict[str, int]) -> tuple[int, ...]:
    """Ids of a sentence of whole lower-case words, begin and end included.

    Raises:
        ValueError: if a word is no piece of ``words``.
    """
    unknown = [word for word in sentence.split() if word not in words]
    if unknown:
        raise ValueError(f"{sentence!r}: {', '.join(unknown)} not in the vocabulary")
    return (words[BEGIN], *(words[word] for word in sentence.split()), words[END])


def tokenizer_json(words: dict[str, int]) -> bytes:
    """A ``tokenizer.json`` over ``words``: BERT's lower-casing, splitting at punctuation, word pieces, ``[CLS]`` and ``[SEP]`` around."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece(words, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(f"{BEGIN} $A {END}", special_tokens=[(piece, words[piece]) for piece in (BEGIN, END)])
    # Read back and written with sorted keys, so that the same words always give the same bytes.
    return json.dumps(json.loads(tokenizer.to_str()), sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
