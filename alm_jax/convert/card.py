"""The model card that is written beside weights: where they came from, by which bytes, and how they were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alm_jax import __version__
from alm_jax.convert.hub import Resolved, card_licence, hashes


@dataclass(frozen=True)
class Provenance:
    """Weights that went into a model.

    Attributes:
        name: as it was given. revision: of the hub, or package versions; "" for a local path.
        sha256: of each file, by name. licence: of the weights, where it is known.
        role: which parameters it gave, in words or patterns; "" for all.
    """

    name: str
    revision: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict)
    licence: str | None = None
    role: str = ""


def provenance(found: Resolved, path: Path, role: str = "") -> Provenance:
    """Of a checkpoint: the model that was found and the path of the file that was opened."""
    return Provenance(found.name, found.revision or "", hashes(path), found.licence or card_licence(path.parent), role)


def write_card(
    title: str,
    *,
    what: str,
    sources: Sequence[Provenance],
    training: str,
    licence: str | None = None,
) -> str:
    """The text of a model card (`README.md`) with the metadata that the hub reads.

    Args:
        title: of the page. what: a sentence on what the files hold and in which names.
        sources: the weights that it was made of. training: how it was trained, in Markdown.
        licence: of the result; by default that of its sources, if they have one and the same.
    """
    from huggingface_hub import ModelCardData

    known = {source.licence for source in sources}
    licence = licence or (known.pop() if len(known) == 1 else None)
    base = list(dict.fromkeys(source.name for source in sources if source.revision))
    data = ModelCardData(library_name="alm_jax", license=_tag(licence), base_model=base or None, tags=["audio"])
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title}",
        what,
        "## Sources",
        _table(sources) if sources else "None: all parameters were trained from random numbers.",
        "## Licences",
        _licences(sources, licence),
        "## Training",
        training,
        f"Written by alm_jax {__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(sources: Sequence[Provenance]) -> str:
    lines = ["| source | revision | gave | file | sha256 |", "|---|---|---|---|---|"]
    for source in sources:
        for file, sha256 in source.sha256.items() or {"": ""}.items():
            cells = (source.name, source.revision, source.role or "all parameters", file, sha256)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _licences(sources: Sequence[Provenance], licence: str | None) -> str:
    if not sources:
        return licence or "Not stated."
    lines = [f"- {source.name}: {source.licence or 'not stated at its source'}" for source in sources]
    if licence is None:
        lines.append("- These weights: not stated. The licences of all sources apply to what was made of them.")
    return "\n".join(lines)


def _tag(licence: str | None) -> str | None:
    """The hub's spelling of an SPDX name."""
    return licence and licence.lower()
