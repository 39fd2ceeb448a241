"""Members of a tar grouped into samples: runs of members that share a name up to its first dot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from stages.sources.planning import Gap, Span
from stages.sources.tars.header import Member

TEXTS = frozenset(["json", "txt"])  # beside the audio
_LOOK_AHEAD = 64  # members of a run, before it is decided how long its keys are


@dataclass
class Sample:
    """Members of one sample by extension, in the order of the archive; `state` as in `Unit`."""

    key: str
    start: int
    stop: int
    state: str = ""
    members: dict[str, Member] = field(default_factory=dict)


Found = Member | Gap  # what lies in an archive, one after the other


class Placed(NamedTuple):
    """A member or gap in a run of members whose names agree up to the first dot.

    The keys of the run's samples have `key_parts` parts, joined by dots. `state` is that number as
    text, or empty for the first of the run.
    """

    found: Found
    key_parts: int
    state: str


@lru_cache(maxsize=4 * _LOOK_AHEAD)  # each name is asked for three times
def _parts(name: str) -> tuple[str, ...]:
    """Split a name at the dots of its last component; the folders belong to the first part."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    first, *others = last.split(".")
    return (f"{folder}{slash}{first}" if first else "", *others)


def _key(parts: tuple[str, ...], key_parts: int) -> tuple[str, str]:
    """Split the parts of a name into the sample's key and an extension of at least one part."""
    num_parts = max(1, min(key_parts, len(parts) - 1))
    return ".".join(parts[:num_parts]), ".".join(parts[num_parts:]).lower()


IsAudio = Callable[[str], bool]  # by extension


def _key_parts(run: Iterable[Found], is_audio: IsAudio) -> int:
    """Return how many parts the keys of a run have: one, unless its audio tells otherwise.

    JA.000.mp3 and JA.001.mp3 are two clips; 1.speech.wav and 1.noise.wav beside 1.txt are one
    sample with two audio members. A single clip whose text has the same name but for the last part is
    one sample.
    """
    names = [_parts(found.name) for found in run if isinstance(found, Member) and not found.unsafe]
    if all(len(parts) <= 2 for parts in names):
        return 1
    audio = [parts for parts in names if is_audio(".".join(parts[1:]).lower())]
    first = next(iter(audio), ())
    other = next((parts for parts in audio if parts[:-1] != first[:-1]), None)
    stems = [parts[:-1] for parts in audio]
    texts = [parts[:-1] for parts in names if parts[-1].lower() in TEXTS]
    if other is None:
        # w1.0.wav beside w1.0.txt, as the names of one sample
        has_text = len(first) > 2 and first[:-1] in texts and is_audio(first[-1].lower())
        return len(first) - 1 if has_text and first[:1] not in texts else 1
    if any(len(stem) == 1 for stem in texts) and not any(stem in stems for stem in texts):
        return 1
    same = zip(first[:-1], other[:-1], strict=False)
    return 1 + next((at for at, (one, two) in enumerate(same) if one != two), len(first) - 1)


def _placed(found: Iterable[Found], is_audio: IsAudio, key_parts: int) -> Iterator[Placed]:
    """Decide for each run of members how long its keys are; `key_parts`: of the first, or 0.

    What is no safe member belongs to the run on both of its sides, or else to the one behind it.
    """
    base: str | None = None
    run: list[Found] = []  # not yielded, because the keys are not known yet
    between: list[Found] = []  # since the last member
    is_first = True

    def decided() -> Iterator[Placed]:
        nonlocal is_first, key_parts
        key_parts = key_parts or _key_parts(run, is_audio)
        for item in run:
            yield Placed(item, key_parts, "" if is_first else str(key_parts))
            is_first = False
        run.clear()

    for item in found:
        if isinstance(item, Gap) or item.unsafe:
            between.append(item)
            continue
        first = _parts(item.name)[0]
        if not first:  # hidden, such as ._x.mp3 of macOS: part of no sample, as in WebDataset
            continue
        if base is not None and first != base:
            yield from decided()
            key_parts, is_first = 0, True
        base = first
        run += [*between, item]
        between.clear()
        if key_parts or len(run) >= _LOOK_AHEAD:
            yield from decided()
    yield from decided()
    for item in between:
        yield Placed(item, 1, "")


def read_samples(
    found: Iterable[Found], is_audio: IsAudio, state: str = ""
) -> Iterator[Sample | Placed]:
    """Group members into samples; an unsafe member or a gap stands alone and ends the sample before.

    `state`: of the first. A key ends at the first dot of a name's last component, as in
    WebDataset; it holds dots where members that agree up to the first one are audio of several
    clips (JA.000.mp3, JA.001.mp3).
    """
    sample: Sample | None = None
    for placed in _placed(found, is_audio, int(state or 0)):
        member = placed.found
        if isinstance(member, Gap) or member.unsafe:
            if sample:
                yield sample
            sample = None
            yield placed
            continue
        key, extension = _key(_parts(member.name), placed.key_parts)
        if sample and (key != sample.key or extension in sample.members):
            yield sample
            sample = None
        sample = sample or Sample(key, member.offset, 0, placed.state)
        sample.members[extension] = member
        sample.stop = member.data_offset + member.size
    if sample:
        yield sample


def span_of(item: Sample | Placed) -> Span | Gap:
    """Return the bytes of a sample, or of what stands alone."""
    if isinstance(item, Sample):
        return Span(item.start, item.stop, item.state)
    found = item.found
    if isinstance(found, Gap):
        return found._replace(state=item.state)
    return Span(found.offset, found.data_offset, item.state)
