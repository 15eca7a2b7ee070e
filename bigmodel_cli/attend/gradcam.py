"""Which region of an image decides its class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import input_of
from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.models import Model
from bigmodel_cli.tasks import ClassificationOptions, Task, build_task


@dataclass(frozen=True)
class Heat:
    """`image` (C, H, W) with pixels in 0..1, `heat` (H, W) in 0..1, the class and its probability.

    A regression has a `value` instead of a probability. `method` names how the heat was made.
    `axes` label rows (upwards) and columns where the image is a spectrogram. `size` is that of the
    feature map. `heat` is None where the map has one position; `note` is a remark on the heat, if
    any.
    """

    image: Tensor
    heat: Tensor | None
    label: str
    probability: float
    size: tuple[int, int]
    method: str
    axes: tuple[str, str] | None
    note: str = ""
    value: float | None = None

    @property
    def caption(self) -> str:
        """The model's prediction, for people."""
        return f"{self.label}: " + (
            f"{100 * self.probability:.1f} %" if self.value is None else f"{self.value:.6g}"
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        heat = self.heat.tolist() if self.heat is not None else None
        said = {"probability": self.probability} if self.value is None else {"value": self.value}
        values = {"label": self.label, **said, "map": list(self.size), "heat": heat}
        return {**values, "note": self.note} if self.note else values


def grad_cam(model: Model, image: Tensor, info: DatasetInfo, task: Task | None = None) -> Heat:
    """Grad-CAM (Selvaraju et al. 2017) for one normalised image (1, C, H, W).

    It is of the task's foremost output, by default the likeliest class.

    The last feature map's channels are weighted by the mean gradient of the class's logit, summed,
    clamped at zero and resized to the image.
    """
    layer = model.last_feature_layer()
    kept: list[
        Tensor
    ] = []  # not copies: in-place operations (DenseNet's last ReLU) belong to the map
    hook = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        with torch.enable_grad():
            logits = model(image.detach().requires_grad_())
    finally:
        hook.remove()
    features = kept[-1]  # (1, K, h, w)
    best = (task or likeliest(info)).foremost(logits.detach())[0]
    (gradient,) = torch.autograd.grad(logits[0, best], features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # (1, K, 1, 1)
    heat = F.relu((weights * features).sum(1, keepdim=True)).detach()  # (1, 1, h, w)
    return heat_over(image.detach(), heat, logits.detach(), info, task, "Grad-CAM")


def likeliest(info: DatasetInfo) -> Task:
    """A classification task of these classes."""
    return build_task(ClassificationOptions(), info)


def heat_over(
    image: Tensor, heat: Tensor, logits: Tensor, info: DatasetInfo, task: Task | None, method: str
) -> Heat:
    """A map (1, 1, h, w) resized to a normalised image (1, C, H, W), scaled to a maximum of 1."""
    task = task or likeliest(info)
    _, label, said = task.foremost(logits)
    height, width = image.shape[-2:]
    rows, columns = heat.shape[-2:]
    kind = input_of(info)
    note, whole = "", None
    if rows == columns == 1:
        note = (
            f"the network's last map is 1 x 1 for images of {height} x {width}, so that it cannot"
            " say where: no region is drawn; larger images (data.size) or fewer strides leave a"
            " larger map"
        )
    else:
        if not bool(heat.max() > 0):
            note = (
                "nowhere does the network's last map speak for this class: the heat is 0 everywhere"
            )
        whole = F.interpolate(heat, size=(height, width), mode="bilinear", align_corners=False)[
            0, 0
        ]
        whole = (whole / whole.max().clamp(min=1e-12)).cpu()
    value = None if task.of_probability else said
    pixels = kind.pixels_of(image[0].cpu())
    return Heat(pixels, whole, label, said, (rows, columns), method, kind.axes, note, value)
