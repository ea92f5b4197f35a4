import pytest
import torch


def pool_boxes(maps, boxes, out):
    """RoIAlign inside the picture by torch's bilinear sampler: (b, h, w, c) -> (b, n, out, out, c)."""
    height, width = maps.shape[1:3]
    pooled = []
    for picture, picture_boxes in zip(maps, boxes, strict=True):
        for box in picture_boxes:
            x0, y0, x1, y1 = (float(edge) for edge in box)
            rows = max(1, -(-(y1 - y0) * height // out)) * out
            columns = max(1, -(-(x1 - x0) * width // out)) * out
            y = y0 + (torch.arange(int(rows), dtype=maps.dtype) + 0.5) / rows * (y1 - y0)
            x = x0 + (torch.arange(int(columns), dtype=maps.dtype) + 0.5) / columns * (x1 - x0)
            grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1) * 2 - 1
            samples = torch.nn.functional.grid_sample(
                picture.permute(2, 0, 1)[None], grid[None], padding_mode="border", align_corners=False
            )
            pooled.append(torch.nn.functional.adaptive_avg_pool2d(samples, out)[0].permute(1, 2, 0))
    return torch.stack(pooled).reshape(*boxes.shape[:2], out, out, -1)


@pytest.fixture(scope="session")
def torch_roi():
    return pool_boxes
