"""Shows results: pictures with heatmaps, masks and boxes, and a report in one file."""
