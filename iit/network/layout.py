"""Which dimension is the batch, and which the positions, as far as modules tell."""

from torch import nn


def batch_first(modules: list[nn.Module]) -> bool:
    """Whether the batch comes first, as the module itself or torch's own sequence module around it says."""
    if hasattr(modules[0], "batch_first"):
        return bool(modules[0].batch_first)
    known = (nn.TransformerEncoder, nn.TransformerDecoder, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.Transformer)
    for around in modules:
        if isinstance(around, known):
            return all(bool(m.batch_first) for m in around.modules() if isinstance(m, nn.MultiheadAttention))
    return True


def axes(path: str, modules: dict[str, nn.Module]) -> str | None:
    """What four dimensions are here: TransformerLens's hook points say it by name; elsewhere only convolutions make them pixels."""
    if type(modules[path]).__name__ == "HookPoint":
        return "keys" if path.endswith(("hook_pattern", "hook_attn_scores")) else "heads"
    return "pixels" if any(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in modules.values()) else None
