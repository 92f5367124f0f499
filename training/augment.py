"""Random shifts and mirror images of a whole batch at once, on the batch's device."""

from __future__ import annotations

import torch
from torch import Tensor

NATURAL_SIDE = 32  # colour images from this side are taken for photographs, which may be mirrored


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Uint8 [N, C, H, W] -> the same shape: each image is padded and cropped at random; photographs are mirrored too.

    Colour images are padded with an eighth of their side (4 pixels at 32, He et al. 2015, arXiv:1512.03385, section
    4.2) and, from 32 pixels, mirrored half of the time. Grey ones (digits, letters) move by a fourteenth, 2 pixels at
    28. Offsets come from the CPU generator, so that a seed means the same on every device.
    """
    n, channels, side = images.shape[0], images.shape[1], images.shape[-1]
    pad = side // 8 if channels > 1 else max(1, side // 14)
    offsets = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=generator)
    columns = torch.arange(side).expand(n, side)
    if channels > 1 and side >= NATURAL_SIDE:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows = (torch.arange(images.shape[-2]) + offsets[0]).to(images.device)
    columns = (columns + offsets[1]).to(images.device)
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    which = torch.arange(n, device=images.device)
    return padded[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
