"""Random views of sprites for pretraining, made for a whole batch at once.

A view is a sprite that was recoloured, redrawn, warped and put on a random background. The
changes are strong on purpose: the towers have to know concepts in drawing styles that they
never saw.
"""

import torch
from torch import Tensor
from torch.nn import functional

LUMA = (0.299, 0.587, 0.114)


def chance(number: int, probability: float) -> Tensor:
    """A column of booleans for images, true with a probability."""
    return (torch.rand(number) < probability).view(-1, 1, 1, 1)


def uniform(number: int, low: float, high: float) -> Tensor:
    """A column of uniform random numbers for images."""
    return torch.empty(number, 1, 1, 1).uniform_(low, high)


def luminance(pixels: Tensor) -> Tensor:
    """Brightness of RGB pixels, one channel."""
    return (pixels * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def ramp(number: int, size: int) -> Tensor:
    """A linear ramp from 0 to 1 in a random direction for each image."""
    angle = torch.rand(number, 1, 1) * 2 * torch.pi
    axis = torch.linspace(-1, 1, size)
    plane = angle.cos() * axis.view(1, 1, -1) + angle.sin() * axis.view(1, -1, 1)
    return (plane / 2.83 + 0.5).clamp(0, 1).unsqueeze(1)


def paint(number: int, size: int, gradient: float) -> Tensor:
    """Random colours, some of them gradients between two colours."""
    first = torch.rand(number, 3, 1, 1)
    second = (first + torch.empty(number, 3, 1, 1).uniform_(-0.5, 0.5)).clamp(0, 1)
    share = ramp(number, size) * chance(number, gradient)
    return first + (second - first) * share


def grow(plane: Tensor, reach: int) -> Tensor:
    """Largest value within a reach, by rows and then by columns."""
    for axis in (2, 3):
        grown = plane
        for step in range(1, reach + 1):
            length = plane.shape[axis] - step
            ahead, behind = plane.narrow(axis, step, length), plane.narrow(axis, 0, length)
            grown = grown.clone()
            near, far = grown.narrow(axis, 0, length), grown.narrow(axis, step, length)
            near.copy_(torch.maximum(near, ahead))
            far.copy_(torch.maximum(far, behind))
        plane = grown
    return plane


def recolour(rgb: Tensor, strength: float) -> Tensor:
    """Change hue, saturation, contrast and brightness of coloured sprites."""
    number = len(rgb)
    angle = uniform(number, -torch.pi, torch.pi) * chance(number, 0.35 * strength)
    cosine, sine = angle.cos(), angle.sin() / 3**0.5
    mean = rgb.mean(1, keepdim=True)
    turned = cosine * rgb + (1 - cosine) * mean + sine * (rgb.roll(1, 1) - rgb.roll(-1, 1))
    grey = luminance(turned)
    keep = 1 + strength * uniform(number, -0.7, 0.6)
    keep = torch.where(chance(number, 0.15 * strength), torch.zeros_like(keep), keep)
    mixed = grey + keep * (turned - grey)
    power = (strength * uniform(number, -0.6, 0.6)).exp()
    return ((1 + strength * uniform(number, -0.3, 0.2)) * mixed.clamp(0, 1) ** power).clamp(0, 1)


def as_ink(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Coverage of a one-colour redrawing: the dark parts, the light parts or the edges."""
    number = len(rgb)
    grey = luminance(rgb)
    middle = (grey * alpha).sum((2, 3), keepdim=True) / alpha.sum((2, 3), keepdim=True).clamp(1)
    middle = middle + uniform(number, -0.15, 0.15)
    dark = ((middle - grey) * 12).sigmoid() * alpha
    light = ((grey - middle) * 12).sigmoid() * alpha
    flat = grey * alpha
    spread = grow(flat, 1) + grow(-flat, 1)
    rim = alpha - 1 + grow(1 - alpha, 2)
    edges = torch.maximum(((spread - 0.15) * 8).clamp(0, 1), rim.clamp(0, 1)) * alpha
    choice = torch.rand(number, 1, 1, 1)
    return torch.where(choice < 0.4, edges, torch.where(choice < 0.7, dark, light))


def shade(rgb: Tensor, alpha: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Light some sprites from one side and draw an outline around others."""
    number, _, size, _ = rgb.shape
    light = uniform(number, 0.0, 0.5) * chance(number, 0.4 * strength)
    lit = (rgb * (1 + light * (2 * ramp(number, size) - 1))).clamp(0, 1)
    rows = torch.nonzero(torch.rand(number) < 0.25 * strength).flatten()
    colour = torch.rand(len(rows), 3, 1, 1)
    colour = torch.where(chance(len(rows), 0.6), (colour < 0.5).float()[:, :1], colour)
    lit[rows] = colour + (lit[rows] - colour) * alpha[rows]
    outlined = alpha.clone()
    outlined[rows] = grow(alpha[rows], 2)
    return lit, outlined


def sampling_grid(size: int, may_flip: Tensor, strength: float) -> Tensor:
    """Positions to read for a random rotation, scale, shift, shear and smooth warp."""
    number = len(may_flip)
    angle = strength * torch.empty(number).uniform_(-0.28, 0.28)
    grow_x = (strength * torch.empty(number).uniform_(-0.28, 0.38)).exp()
    grow_y = grow_x * (strength * torch.empty(number).uniform_(-0.12, 0.12)).exp()
    flip = torch.where(may_flip & (torch.rand(number) < 0.35 * strength), -1.0, 1.0)
    shear = strength * torch.empty(number).uniform_(-0.12, 0.12)
    matrix = torch.zeros(number, 2, 3)
    matrix[:, 0, 0] = angle.cos() * grow_x * flip
    matrix[:, 0, 1] = (shear - angle.sin()) * grow_x
    matrix[:, 1, 0] = angle.sin() * grow_y * flip
    matrix[:, 1, 1] = angle.cos() * grow_y
    matrix[:, :, 2] = strength * torch.empty(number, 2).uniform_(-0.22, 0.22)
    grid = functional.affine_grid(matrix, [number, 4, size, size], align_corners=False)
    bumps = torch.randn(number, 2, 5, 5) * uniform(number, 0.0, 0.08 * strength)
    warp = functional.interpolate(bumps, (size, size), mode="bicubic", align_corners=True)
    return grid + warp.permute(0, 2, 3, 1)


def soften(pixels: Tensor, strength: float) -> Tensor:
    """Blur some views, hide a patch of others and add a little noise."""
    number, _, size, _ = pixels.shape
    rows = torch.nonzero(torch.rand(number) < 0.2 * strength).flatten()
    pixels[rows] = functional.avg_pool2d(pixels[rows], 3, 1, 1, count_include_pad=False)
    axis = torch.arange(size)
    corner = torch.randint(-8, size, (number, 2, 1, 1))
    extent = torch.randint(6, 18, (number, 2, 1, 1))
    inside = [
        (axis.view(shape) >= corner[:, side : side + 1])
        & (axis.view(shape) < (corner + extent)[:, side : side + 1])
        for side, shape in enumerate(((1, 1, 1, -1), (1, 1, -1, 1)))
    ]
    hidden = inside[0] & inside[1] & chance(number, 0.25 * strength)
    pixels = torch.where(hidden, torch.rand(number, 3, 1, 1), pixels)
    return (pixels + torch.randn_like(pixels) * uniform(number, 0.0, 0.04 * strength)).clamp(0, 1)


def random_views(
    sprites: Tensor, single: Tensor, may_flip: Tensor, size: int, strength: float
) -> Tensor:
    """RGB views in [0, 1] of RGBA sprites given as bytes, height by width by channels.

    single marks sprites of one colour; may_flip those whose mirror image means the same. The
    strength of the changes goes from 0 to 1: training stalls when it starts with strong ones.
    Weak changes leave most sprites dark on a light background.
    """
    pixels = sprites.permute(0, 3, 1, 2).float() / 255
    rgb, alpha = pixels[:, :3], pixels[:, 3:]
    number, _, side, _ = rgb.shape
    redrawn = chance(number, 0.2 * strength) & ~single.view(-1, 1, 1, 1)
    one_colour = single.view(-1, 1, 1, 1) | redrawn
    rows = torch.nonzero(redrawn.flatten()).flatten()
    alpha[rows] = as_ink(rgb[rows], alpha[rows])
    rgb[~one_colour.flatten()] = recolour(rgb[~one_colour.flatten()], strength)
    rows = torch.nonzero(one_colour.flatten()).flatten()
    rgb[rows] = paint(len(rows), side, 0.3 * strength)
    easy = chance(number, 1 - strength)
    rgb = torch.where(easy & one_colour, 0.4 * rgb, rgb)
    rgb, alpha = shade(rgb, alpha, strength)
    ink = luminance(rgb).mean((2, 3), keepdim=True)
    grid = sampling_grid(size, may_flip, strength)
    moved = functional.grid_sample(torch.cat([rgb * alpha, alpha], 1), grid, align_corners=False)
    background = paint(number, size, 0.5 * strength)
    plain = (torch.rand(number, 1, 1, 1) < 0.6).float()
    background = torch.where(chance(number, 0.5 - 0.3 * strength), plain, background)
    background = torch.where(easy, 1 - 0.2 * (1 - background), background)
    level = luminance(background).mean((2, 3), keepdim=True)
    close = one_colour & ((level - ink).abs() < 0.3)
    away = torch.where(ink > 0.5, background * 0.3, 1 - (1 - background) * 0.3)
    background = torch.where(close, away, background)
    return soften(moved[:, :3] + background * (1 - moved[:, 3:]), strength)
