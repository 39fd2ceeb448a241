"""Why a sample has no place in a row: the codes that interleave holds for each, and what they say."""

from __future__ import annotations

from koe.schema import QUARANTINED, REJECTED
from stages.text.transcripts import LONG_FOR_SOURCE, SHORT_FOR_SOURCE

# 0: it has a place
DUPLICATE, OVERLONG, EXHAUSTED, SHORT, LONG, SAME_AUDIO, SAME_CODES, SAME_TEXT = range(1, 9)

# code: outcome, reason, and the detail with a place for each figure
REASONS = {
    DUPLICATE: (QUARANTINED, "duplicate_id", "an earlier sample of the plan has this id"),
    OVERLONG: (REJECTED, "overlong", "{} tokens are more than a row holds"),
    EXHAUSTED: (
        REJECTED,
        "ratio_exhausted",
        "of {} tokens: the ratio asks for more of the other modality",
    ),
    SHORT: (
        REJECTED,
        SHORT_FOR_SOURCE,
        "{} characters per second, {} to {} are usual in its source",
    ),
    LONG: (REJECTED, LONG_FOR_SOURCE, "{} characters per second, {} to {} are usual in its source"),
    SAME_AUDIO: (REJECTED, "duplicate_audio", "the same audio as {}"),
    SAME_CODES: (REJECTED, "duplicate_codes", "the same codes as {}"),
    SAME_TEXT: (REJECTED, "duplicate_text", "the same speaker and text as {}"),
}
