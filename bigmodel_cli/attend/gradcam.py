"""Which region of an image decides its class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bigmodel_cli.config import Facts
from bigmodel_cli.lazy import F, Tensor, torch


@dataclass(frozen=True)
class Heat:
    """`image` (C, H, W) with pixels in 0..1; `heat` (H, W) in 0..1; the likeliest class, with its probability."""

    image: Tensor
    heat: Tensor
    label: str
    probability: float

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"label": self.label, "probability": self.probability, "heat": self.heat.tolist()}


def grad_cam(model: Any, image: Tensor, facts: Facts) -> Heat:
    """Grad-CAM (Selvaraju et al. 2017) of the likeliest class, for one normalised image (1, C, H, W).

    The last feature map's channels, weighted by the mean gradient of the class's logit, summed, cut at zero and brought to
    the image's size.
    """
    layer = model.last_feature_layer()
    kept: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        with torch.enable_grad():
            logits = model(image.requires_grad_())
    finally:
        hook.remove()
    features = kept[-1]  # (1, K, h, w)
    best = int(logits.argmax(1))
    (gradient,) = torch.autograd.grad(logits[0, best], features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # (1, K, 1, 1)
    heat = F.relu((weights * features).sum(1, keepdim=True)).detach()  # (1, 1, h, w)
    return heat_over(image.detach(), heat, logits.detach(), facts)


def heat_over(image: Tensor, heat: Tensor, logits: Tensor, facts: Facts) -> Heat:
    """A map (1, 1, h, w) at the size of a normalised image (1, C, H, W), its greatest value 1, beside the image's own pixels."""
    best = int(logits.argmax(1))
    heat = F.interpolate(heat, size=image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    heat = heat / heat.max().clamp(min=1e-12)
    mean = torch.tensor(facts.mean or (0.0,)).view(-1, 1, 1)
    std = torch.tensor(facts.std or (1.0,)).view(-1, 1, 1)
    pixels = (image[0].cpu() * std + mean).clamp(0, 1)
    probability = float(logits.float().softmax(1)[0, best])
    return Heat(pixels, heat.cpu(), facts.classes[best], probability)
