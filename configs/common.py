"""What configs share: typed `get_config(arg)` strings, and the table of parameters' shardings."""

from typing import Any

# Rules are (path pattern, spec); the first match wins. These suit every size that fits one device.
REPLICATED = ((".*", "replicate"),)
# Fully sharded data parallelism: the largest divisible dimension of every array of at least 4 MiB.
FSDP = ((".*", "fsdp"),)
# Layers that read the residual stream are split by columns over "model", those that write to it by rows (Megatron-LM,
# Shoeybi et al. 2019, arXiv 1909.08053). A tower has either of the two kinds of MLP.
READING, WRITING = r"/(q|k|v|fc1|gate|up)", r"blocks/.*/(out|fc2|down)/kernel$"


def _tensor(other: Any, rest: str) -> tuple[Any, ...]:
    """`other`: the mesh axis of the split kernels' other dimension; `rest`: the spec of everything else."""
    kernels = rf"blocks/.*{READING}/kernel$", [other, "model"]
    return kernels, (rf"blocks/.*{READING}/bias$", ["model"]), (WRITING, ["model", other]), (".*", rest)


TENSOR, FSDP_TENSOR = _tensor(None, "replicate"), _tensor("fsdp", "fsdp")
SHARDINGS = {"replicate": REPLICATED, "fsdp": FSDP, "tensor": TENSOR, "fsdp_tensor": FSDP_TENSOR}


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
    """Reads "key=value,flag" into typed values: the type is that of the default; a bare key means True.

    Raises:
      ValueError: on an unknown key or a value that is not of the default's type; it lists the valid keys.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, _, text = item.partition("=")
        if key not in defaults:
            raise ValueError(f"unknown config argument {key!r} in {arg!r}; valid: {', '.join(sorted(defaults))}")
        values[key] = _typed(key, text, type(defaults[key]))
    return values


def _typed(key: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("", "true", "false"):
            raise ValueError(f"config argument {key}={text!r} must be true or false")
        return text.lower() != "false"
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"config argument {key}={text!r} must be of type {kind.__name__}") from error
