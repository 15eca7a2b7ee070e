"""Vision Transformers: an image as a sequence of patches (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import Count, DatasetInfo, Natural, Positive, Probability
from bigmodel_cli.errors import Faults, OptionError, SpecError
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.logits import wide_logits
from bigmodel_cli.models.base import Resizing, no_images
from bigmodel_cli.models.block import build_blocks
from bigmodel_cli.models.feature_maps import grid_of_tokens
from bigmodel_cli.models.init import glorot
from bigmodel_cli.models.mae import PatchDecoder, ReconstructOptions, patchify, unpatchify
from bigmodel_cli.models.skeleton import Blocks, Skeleton, SkeletonOptions, through
from bigmodel_cli.parts import Norm
from bigmodel_cli.parts.context import SINGLE_DOCUMENT
from bigmodel_cli.parts.dropout import dropout
from bigmodel_cli.parts.grid import positions_between, sines_of_grid
from bigmodel_cli.parts.norm import LayerNormOptions
from bigmodel_cli.roles import OUTER, Role

NO_HEAD = (
    "this network rebuilds hidden patches of images and has no head to label them; finetune it"
    " first: bigmodel finetune --from CKPT SPEC, with model.reconstruct: null and task.type:"
    " classification"
)


class ViTOptions(SkeletonOptions):
    """A Vision Transformer: patches, a class token or the mean, registers, blocks of parts."""

    type: Literal["vit"] = "vit"
    outputs: ClassVar = ("labels", "patches")
    two_sided = "model"
    patch: Count = Field(description="height and width of a patch, which must divide the image")
    position: Literal["learned", "sines", "none"] = Field(
        "learned",
        description=(
            "a learned vector for each place, or fixed sines and cosines of its row and column;"
            " none: nothing is added (attention may have positions)"
        ),
    )
    blocks: Blocks = Field(description="the blocks, in order")
    pool: Literal["cls", "mean", "cls_mean"] = Field(
        "cls",
        description=(
            "what the label is read from: a class token, the patches' mean, or both, one after the"
            " other (DINOv2)"
        ),
    )
    registers: Natural = Field(
        0, description="further learned tokens beside the patches (Darcet et al. 2024)"
    )
    norm: Norm | None = Field(LayerNormOptions(), description="after the blocks; null for none")
    dropout: Probability = Field(0.0, description="of the embeddings")
    init_std: Positive = Field(
        0.02,
        description="deviation of what is learned beside matrices: positions, mask and class token",
    )
    reconstruct: ReconstructOptions | None = Field(
        None,
        description=(
            "a decoder that rebuilds hidden patches, in place of the head: for task.type:"
            " masked_image"
        ),
    )

    def build(self, info: DatasetInfo) -> ViT:
        return ViT(self, info)

    def check_output(self, output: str, task: str) -> None:
        """With a decoder it reconstructs hidden patches, without one it labels."""
        if self.reconstruct is None and output == "patches":
            raise ValueError(
                f"task.type: {task} rebuilds hidden patches, and model.type: vit has no decoder;"
                " give model.reconstruct"
            )
        if self.reconstruct is not None and output != "patches":
            raise ValueError(
                "model.reconstruct is for task.type: masked_image; set it to null for task.type:"
                f" {task}"
            )

    def grid(self, info: DatasetInfo) -> tuple[int, int]:
        """Rows and columns of patches in an image.

        Raises `OptionError` where the patch does not divide it, or there is none.
        """
        if info.image_shape is None:
            raise no_images("vit reads images", info)
        _, height, width = info.image_shape
        if height % self.patch or width % self.patch:
            raise OptionError(
                ("model.patch", f"{self.patch} does not divide the image of {height} x {width}")
            )
        return height // self.patch, width // self.patch


class ViT(Skeleton):
    """(B, C', H, W) -> (B, classes)   patches, blocks, head (Dosovitskiy et al. 2021).

    Positions are learned, one for the class token and each patch, or fixed (Beyer et al. 2022);
    registers have none. With `reconstruct` a decoder replaces the head, and the network is a masked
    autoencoder (He et al. 2022); the names of all other weights are the same.
    """

    grid: tuple[int, int]

    def __init__(self, options: ViTOptions, info: DatasetInfo) -> None:
        super().__init__()
        self.options, self.grid, faults = options, options.grid(info), Faults()
        if options.reconstruct is None and not info.outputs:
            raise OptionError(
                (
                    "model.type",
                    (
                        "vit labels images, and the data has no labels; model.reconstruct learns"
                        " without"
                    ),
                )
            )
        assert info.image_shape is not None
        channels, count = info.image_shape[0], self.grid[0] * self.grid[1]
        self.first = int(options.pool != "mean")
        self.patches = nn.Conv2d(channels, options.dim, options.patch, options.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, options.dim)) if self.first else None
        registers = torch.zeros(1, options.registers, options.dim)
        self.registers = nn.Parameter(registers) if options.registers else None
        if options.position == "sines":
            with faults.under("model"):
                self.register_buffer("table", self.sines(), persistent=False)
        elif options.position == "none":
            self.table = None
        else:
            self.table = nn.Parameter(torch.empty(1, self.first + count, options.dim))
        with faults.under("model.blocks"):
            length = self.first + count + options.registers
            # With hidden patches it is not the whole grid that comes in.
            grid = self.grid if options.reconstruct is None else None
            self.blocks = build_blocks(
                options.blocks, options.dim, length, causal=False, grid=grid, first=self.first
            )
        self.norm = faults.build("model.norm", options.norm, options.dim)
        width = options.dim * (2 if options.pool == "cls_mean" else 1)
        self.head = nn.Linear(width, info.outputs) if options.reconstruct is None else None
        with faults.under("model.reconstruct"):
            self.decoder = (
                self.build_decoder(options.reconstruct, channels)
                if options.reconstruct is not None
                else None
            )
        faults.check()
        self.start()

    def start(self) -> None:
        """Initialise as google-research/vision_transformer and facebookresearch/mae do.

        Matrices of the blocks: Glorot's uniform; biases: zero, of feed-forward layers normal of
        deviation 1e-6. Patches: truncated normal of variance 1 / inputs (LeCun), with bias zero;
        positions, relative ones too: normal of `init_std`; class token and head: zero. An
        autoencoder's patches: Glorot's uniform, with bias zero; its class token and mask: normal of
        `init_std`. Registers: normal of deviation 1e-6, as in DINOv2 (they have no positions, and
        equal ones would stay equal).
        """
        std, patches, alone = self.options.init_std, self.patches, self.decoder is None
        glorot(self)
        fan_in = patches.weight[0].numel()
        nn.init.zeros_(patches.bias)  # type: ignore[arg-type]
        if alone:
            # The deviation after truncation at two deviations.
            truncated = fan_in**-0.5 / 0.87962566103423978
            nn.init.trunc_normal_(patches.weight, std=truncated, a=-2 * truncated, b=2 * truncated)
        else:
            nn.init.xavier_uniform_(patches.weight.detach().flatten(1))
        for table in (
            self.table,
            *(m.weight for m in self.modules() if isinstance(m, nn.Embedding)),
        ):
            if isinstance(table, nn.Parameter):
                nn.init.normal_(table, std=std)
        if self.cls is not None and not alone:
            nn.init.normal_(self.cls, std=std)
        if self.registers is not None:
            nn.init.normal_(self.registers, std=1e-6)
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
            for name, module in self.blocks.named_modules():
                if ".ffn" in name and isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.normal_(module.bias, std=1e-6)

    def sines(self) -> Tensor:
        """(1, 1 + N, C) the fixed positions."""
        return sines_of_grid(self.grid, self.options.dim, self.first)[None]

    def build_decoder(self, options: ReconstructOptions, channels: int) -> PatchDecoder:
        """The decoder that reconstructs patches."""
        pixels = channels * self.options.patch**2
        return PatchDecoder(
            options, self.options.dim, self.grid, self.first, pixels, self.options.init_std
        )

    def unmasked(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """An autoencoder sees all patches."""
        images, every = batch["image"], torch.arange(self.grid[0] * self.grid[1])
        every = every.to(images.device).expand(len(images), -1)
        return (images,) if self.decoder is None else (images, every)

    def last_feature_layer(self) -> str:
        """The last block whose patches are read: that before the last, where the label is the class
        token's.
        """
        if self.head is None:
            raise SpecError(NO_HEAD)
        last = len(self.blocks) - (2 if self.options.pool == "cls" else 1)
        return "patches" if last < 0 else f"blocks.{last}"

    def feature_map(self, name: str, output: Tensor) -> Tensor | None:
        """The patches at their places, without class token and registers."""
        found = super().feature_map(name, output)
        return grid_of_tokens(output, self.first, self.grid) if found is None else found

    def weight_roles(self) -> dict[str, Role]:
        """The patches' kernel is the first layer, the logits' layer the last."""
        return {"patches.weight": OUTER} | ({"head.weight": OUTER} if self.head is not None else {})

    def stream_layers(self) -> list[Module]:
        return list(self.blocks)

    def output_layers(self) -> tuple[str, ...]:
        """Prefixes of the weights that a new task initialises anew."""
        return ("head", "decoder")

    def resizing(self, before: DatasetInfo) -> Mapping[str, Resizing]:
        """Learned positions are interpolated."""
        if self.options.position == "sines" or before.image_shape is None:
            return {}
        patch, (_, height, width) = self.options.patch, before.image_shape
        old = (height // patch, width // patch)
        change = partial(positions_between, old=old, new=self.grid, first=self.first)
        return {"table": change} if old != self.grid else {}

    def patchify(self, images: Tensor) -> Tensor:
        """(B, C', H, W) -> (B, N, P)   the pixel values of each patch."""
        return patchify(images, self.options.patch)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, N, P) -> (B, C', H, W)   the inverse."""
        return unpatchify(patches, self.options.patch, self.grid)

    def patch_vectors(self, images: Tensor) -> Tensor:
        """(B, C', H, W) -> (B, N, C)   patches with positions, no class token and no registers."""
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, N, C)
        y: Tensor = x if self.table is None else x + self.table[:, self.first :]
        return y

    def features(self, patches: Tensor) -> Tensor:
        """(B, N, C) -> (B, 1 + N, C)   patches (all or some) through the blocks.

        A class token, where there is one, comes first.
        """
        x, batch = patches, patches.shape[0]
        if self.cls is not None:
            cls = self.cls if self.table is None else self.cls + self.table[:, :1]
            x = torch.cat((cls.expand(batch, -1, -1), x), 1)
        if self.registers is not None:
            x = torch.cat((x, self.registers.expand(batch, -1, -1)), 1)
        x = dropout(x, self.options.dropout, self.training)
        x = through(self.blocks, None, x, SINGLE_DOCUMENT)
        x = x[:, : x.shape[1] - self.options.registers]
        return x if self.norm is None else self.norm(x)

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """The logits of each image; of an autoencoder, all pixels (B, N, P).

        The latter from the patches `visible` (B, K).
        """
        x = self.patch_vectors(images)
        if self.decoder is not None:
            if visible is None:
                raise SpecError(NO_HEAD)
            seen = x.gather(1, visible[..., None].expand(-1, -1, x.shape[2]))  # (B, K, C)
            pixels: Tensor = self.decoder(self.features(seen), visible)
            return pixels
        assert self.head is not None
        return wide_logits(self.pooled(self.features(x)), self.head)

    def pooled(self, x: Tensor) -> Tensor:
        """(B, 1 + N, C) -> (B, C), or (B, 2C)   what the label is read from."""
        if not self.first:
            return x.mean(1)
        if self.options.pool == "cls":
            return x[:, 0]
        return torch.cat((x[:, 0], x[:, 1:].mean(1)), 1)
