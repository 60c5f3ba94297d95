"""Pictures with something taken out of them, so that what an answer owes to a picture can be seen: same size, so the same tokens."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Seed, within
from mmalign.arguments.signatures import Record
from mmalign.types import UserError

How = Literal["crop", "blank", "noise", "diffuse"]
HOW = ("crop", "blank", "noise", "diffuse")


@dataclass(frozen=True)
class Ablation(Record):
    """What is done to an image, or to every frame of a video, where a method compares with what a model says without it.

    seed: of all that is random; it is the same each time for one picture. share: of what goes, above 0 up to 1.
    how: ``crop``, a part of the picture of a random shape, place and area up to ``share`` of its own, scaled to its size (mDPO,
    arXiv:2406.11839: up to a fifth, *recalled*; the released code hides the picture's tokens in the model instead). ``blank``, mid-grey.
    ``noise``, uniform. ``diffuse``, ``sqrt(1 - share) picture + sqrt(share) noise`` in -1..1, the forward process of a diffusion model at
    a signal of ``1 - share`` (POVID's and V-DPO's corrupted pictures are of this kind). Errors: UserError for other words and numbers.
    """

    how: How = "crop"
    share: Annotated[float, within(0, 1, above=True)] = 0.2
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.how not in HOW:
            raise UserError(f"how: got {self.how!r}, takes {', '.join(HOW)}")

    def __call__(self, picture: Any) -> Any:
        """A picture as PIL has it, changed."""
        from PIL import Image

        whole = picture.convert("RGB")
        if self.how == "blank":
            return Image.new("RGB", whole.size, (128, 128, 128))
        pixels = whole.tobytes()
        seed = int.from_bytes(hashlib.blake2b(pixels + str(self.seed).encode(), digest_size=7).digest(), "big")
        if self.how == "crop":
            return self._cropped(whole, random.Random(seed))
        rng, size = torch.Generator().manual_seed(seed), (whole.height, whole.width, 3)
        if self.how == "noise":
            changed = torch.randint(256, size, generator=rng, dtype=torch.uint8)
        else:
            values = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(size).float() / 127.5 - 1
            mixed = (1 - self.share) ** 0.5 * values + self.share**0.5 * torch.randn(size, generator=rng)
            changed = ((mixed.clamp(-1, 1) + 1) * 127.5).round().byte()
        return Image.fromarray(changed.numpy())

    def frames(self, clip: Tensor) -> Tensor:
        """Frames ``[F, 3, H, W]`` uint8, each changed."""
        from PIL import Image

        pictures = [self(Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())) for frame in clip]
        tensors = [torch.frombuffer(bytearray(frame.tobytes()), dtype=torch.uint8).view(frame.height, frame.width, 3) for frame in pictures]
        return torch.stack(tensors).permute(0, 3, 1, 2).contiguous()

    def _cropped(self, whole: Any, rng: random.Random) -> Any:
        from PIL import Image

        area = rng.uniform(0.0, self.share) * whole.width * whole.height
        stretch = 2 ** rng.uniform(-0.5, 0.5)
        width = min(whole.width, max(1, round((area * stretch) ** 0.5)))
        height = min(whole.height, max(1, round((area / stretch) ** 0.5)))
        left, top = rng.randint(0, whole.width - width), rng.randint(0, whole.height - height)
        return whole.crop((left, top, left + width, top + height)).resize(whole.size, Image.Resampling.BICUBIC)
