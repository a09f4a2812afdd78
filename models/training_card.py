"""The model card of weights made by ``depth-train``: written from the run, never by hand."""

from __future__ import annotations

import platform

from .validation import METRICS


def card(facts: dict) -> str:
    """Markdown.

    Args:
        facts: ``model``, ``variant``, ``licence``, ``file``, ``nbytes``, ``sha256``, ``command``, ``recipe``, ``seed``, ``steps``,
            ``batch``, ``wall_s``, ``device``, ``store``, ``data`` (provenances), ``parameters``, ``results`` (one per validation set:
            ``data``, ``network``, ``constant``, ``mean_map``, each with ``METRICS``).
    """
    lines = [
        f"# {facts['model']}: weights trained with `depth-train`",
        "",
        f"`{facts['file']}`, {facts['nbytes']:,} bytes, {facts['parameters'] / 1e6:.2f} M parameters stored as {facts['store']}, "
        f"SHA-256 `{facts['sha256']}`. Licence of the weights: {facts['licence']}.",
        "",
        "They show the way through this tool on real pictures. They are small, saw little, and are no substitute for the published network.",
        "",
        "## Training",
        "",
        f"    {facts['command']}",
        "",
        f"- recipe: {facts['recipe']}",
        f"- start: {facts['start']}; seed {facts['seed']}",
        f"- {facts['steps']} steps of {facts['batch']} pictures in {facts['wall_s'] / 60:.0f} minutes on {facts['device']} "
        f"({platform.machine()}, {facts['threads']} thread{'s' if facts['threads'] > 1 else ''})",
        *(f"- learned from: {data['name']}{_seed(data)} (`{data['kind']}`, fingerprint `{data['sha256'][:12]}`)" for data in facts["data"]),
        "",
        "## Results on pictures it never saw",
        "",
        "Measured on the stored file, one look per photo (single-image protocol), at the network's own resolution; per",
        "image, then the mean. Both baselines are blind: the median depth of the *other* pictures of the same data set, and their mean depth map.",
        "",
        "| data | images | who | " + " | ".join(METRICS) + " |",
        "|---|---|---|" + "---|" * len(METRICS),
    ]
    for result in facts["results"]:
        data = result["data"]
        for who, title in (("network", f"**{facts['model']}**"), ("mean_map", "mean depth map"), ("constant", "constant depth")):
            if who in result:
                numbers = " | ".join(f"{result[who][name]:.3f}" for name in METRICS)
                lines.append(f"| {data['name']}{_seed(data)} | {data['count']} | {title} | {numbers} |")
    lines += ["", "abs_rel and rmse (metres): lower is better; delta1: higher is better.", *(f"\n{note}" for note in facts["notes"])]
    return "\n".join(lines) + "\n"


def _seed(data: dict) -> str:
    return "" if data["seed"] is None else f", seed {data['seed']}"
