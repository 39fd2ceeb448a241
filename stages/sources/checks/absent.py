"""What to say of a field that no record has."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import get_args

from koe.errors import ConfigError
from stages.sources.checks.look_alikes import names_of_clips, names_of_samples
from stages.sources.settings import (
    ConversationLayout,
    SpeechSourceConfig,
    TextFields,
    TextSourceConfig,
)


def absent_field(
    settings: SpeechSourceConfig | TextSourceConfig,
    key: str,
    name: str,
    names: Collection[str],
    word: str,
    lacking: str,
) -> ConfigError:
    """Make the error for a field that the settings name and that is not among the `names`.

    `word` is what a field is called in this kind of source, and `lacking` says who lacks it.
    """
    near = difflib.get_close_matches(name, names, n=1)
    near = near or [other for other in names if _looks_like(settings, other) == key]
    near = near or [other for other in names if other.rpartition(".")[2] == name]
    hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(names):.300}"
    layout = _other_layout(settings, key, names)
    return ConfigError(
        f"source {settings.name} has no {word} {name!r} for {key}",
        f"{lacking} ({hint})",
        f"Set layout: {layout} of the source." if layout else f"Set fields.{key} of the source.",
    )


def _looks_like(settings: SpeechSourceConfig | TextSourceConfig, name: str) -> str | None:
    if isinstance(settings, SpeechSourceConfig):
        return names_of_clips(settings.fields, frozenset()).role_of(name)
    return names_of_samples(settings.fields, settings.layout).role_of(name)


def _other_layout(
    settings: SpeechSourceConfig | TextSourceConfig, key: str, names: Collection[str]
) -> ConversationLayout | None:
    """Return the layout whose usual fields are there; None for one of the source's own fields."""
    if isinstance(settings, SpeechSourceConfig) or key not in ("instruction", "output", "messages"):
        return None
    usual = TextFields()
    for layout in get_args(ConversationLayout):
        needed = usual.required(layout, lambda name: name in names)
        if layout != settings.layout and set(needed.values()) <= set(names):
            return layout
    return None
