"""Options that say how recordings become frames."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import MOST_PIXELS, MOST_RATE, MelConfig, NonNegative, Positive
from bigmodel_cli.data.base import AnyDataOptions

MOST_FRAMES = 1 << 20
WHISPER: dict[str, Any] = {"mels": 80, "low": 0.0, "normalize": "none"}
"""What is left out with features: whisper."""


class FrameOptions(AnyDataOptions):
    """How sound becomes frames of its log power in mel bands."""

    carried: ClassVar = (
        *AnyDataOptions.carried,
        *("features", "rate", "window", "hop", "mels", "low", "high", "normalize", "pad_to"),
    )
    features: Literal["standard", "whisper"] = Field(
        "standard",
        description=(
            "standard: HTK's mel bands, silence is 0 and full scale 1; whisper: as Whisper and its"
            " kin hear (Slaney's bands, down to 8 decades below the loudest), with mels 80, low 0"
            " and no normalisation when left out"
        ),
    )
    seconds: Annotated[float, Field(gt=0, le=3600)] | None = Field(
        None,
        description=(
            "bring each to this length, as a picture for cnn and vit; left out: rows of frames, for"
            " encoder and seq2seq"
        ),
    )
    pad_to: Annotated[float, Field(gt=0, le=3600)] | None = Field(
        None,
        description=(
            "seconds up to which silence is added behind each, which the network reads as a part"
            " of it (Whisper: 30); longer ones are refused"
        ),
    )
    rate: Annotated[int, Field(ge=100, le=MOST_RATE)] = Field(
        16000, description="samples per second; recordings at another rate are resampled"
    )
    window: Annotated[float, Field(gt=0, le=1)] = Field(
        0.025, description="seconds of sound in a frame"
    )
    hop: Annotated[float, Field(gt=0, le=1)] = Field(0.01, description="seconds between frames")
    mels: Annotated[int, Field(gt=0, le=1024)] = Field(
        64, description="bands of a frame, evenly on the mel scale"
    )
    low: NonNegative = Field(20.0, description="lower end of the lowest band in Hz")
    high: Positive | None = Field(
        None, description="upper end of the highest band in Hz; half the rate when left out"
    )
    normalize: Literal["auto", "none"] = Field(
        "auto", description="auto: to mean 0 and deviation 1 of the training split"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_features(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("features") == "whisper":
            return {**WHISPER, **values}
        return values

    @model_validator(mode="after")
    def _frames(self) -> FrameOptions:
        top = self.high or self.rate / 2
        if not self.low < top <= self.rate / 2:
            raise ValueError(
                f"low and high: {self.low:g} to {top:g} Hz do not lie in this order below half the"
                " rate"
            )
        if min(self.window, self.hop) * self.rate < 1:
            raise ValueError(f"window and hop: at {self.rate} Hz they hold less than a sample")
        if self.seconds is not None and self.pad_to is not None:
            raise ValueError("seconds and pad_to: a recording has one length; leave one out")
        for name, length in (("seconds", self.seconds), ("pad_to", self.pad_to)):
            if length is not None and length / self.hop > MOST_FRAMES:
                raise ValueError(f"{name}: more than {MOST_FRAMES:,} frames")
            if length is not None and length * self.rate > MOST_PIXELS:
                raise ValueError(
                    f"{name}: more than {MOST_PIXELS:,} samples at {self.rate:,} a second"
                )
        self.sound().check()
        return self

    def sound(self) -> MelConfig:
        """How sound becomes frames."""
        return MelConfig(
            rate=self.rate,
            window=round(self.window * self.rate),
            hop=round(self.hop * self.rate),
            mels=self.mels,
            low=self.low,
            high=self.high or self.rate / 2,
            length=None if self.seconds is None else max(1, round(self.seconds * self.rate)),
            features=self.features,
            padded=None if self.pad_to is None else max(1, round(self.pad_to * self.rate)),
        )
