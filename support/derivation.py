"""The crops of FCN-8s, derived line by line: what `python fcn.py` prints."""

from __future__ import annotations

from torch import nn

from vgg import Grid, geometry

# The way back: the layer that upsamples, the letter of its cells, the map that is added, and the
# letter of that map's cells.
WAY_BACK = [("upscore2", "k", "pool4", "m"), ("upscore_pool4", "n", "pool3", "p")]


def signed(term: str, number: float) -> str:
    """ "16 m" and -91.5 to "16 m - 91.5"; nothing is added to the term if the number is 0."""
    return f"{term} {'-' if number < 0 else '+'} {abs(number):g}" if number else term


def centre(grid: Grid, cell: str) -> str:
    """The pixel on which a cell is centred, as a term: "16 m - 91.5"."""
    return signed(cell if grid.stride == 1 else f"{grid.stride} {cell}", grid.offset)


def derivation(net: nn.Module) -> str:
    """The crops of an FCN8s as one would derive them with a pencil, several lines."""
    grid = net.vgg.grid["fc7"].after(net.score_fr)
    lines = [f"score_fr       cell j is centred on pixel {centre(grid, 'j')}"]

    def upsample(name, cell):
        """The lines on an upsampling layer, and the grid of its output."""
        kernel, factor, padding = geometry(net.get_submodule(name))
        after = grid.after(net.get_submodule(name))
        half = (kernel - 1) / 2 - padding
        lines.extend(
            [
                f"{name:14} stride {grid.stride}/{factor} = {after.stride}",
                f"{'':14} offset {grid.offset:g} - {after.stride} ((kernel - 1)/2 - padding) = {grid.offset:g} - "
                f"{after.stride} (({kernel} - 1)/2 - {padding}) = {grid.offset:g} - {after.stride * half:g} = {after.offset:g}",
                f"{'':14} cell {cell} is centred on pixel {centre(after, cell)}",
            ]
        )
        return after

    for name, cell, skip, other in WAY_BACK[: {8: 2, 16: 1, 32: 0}[net.stride]]:
        grid, fine, crop = upsample(name, cell), net.vgg.grid[skip], getattr(net, f"crop_{skip}")
        apart = grid.offset - fine.offset
        by = f"/{grid.stride} = {cell} + {crop}" if apart else ""
        lines += [
            f"score_{skip:8} cell {other} is centred on pixel {centre(fine, other)}",
            f"{'':14} they coincide where {centre(fine, other)} = {centre(grid, cell)}",
            f"{'':14} {other} = {signed(cell, apart)}{by}:  crop {skip} at {crop}",
        ]
    grid = upsample(net.last, "q")  # here the upsampled scores are the larger map, which is cropped
    lines += [
        f"image          pixel x is cell q where {centre(grid, 'q')} = x",
        f"{'':14} q = {signed('x', -grid.offset)}:  crop the output at {net.crop_image}",
    ]
    return "\n".join(lines)
