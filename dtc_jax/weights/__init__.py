"""Weights on disk: model folders, and the conversion of PyTorch checkpoints."""

from dtc_jax.weights.model_folder import (
    ModelFolderError,
    check_params,
    load_model_folder,
    resolve_checkpoint,
    save_model_folder,
    shipped_model_folder,
)

__all__ = [
    "ModelFolderError",
    "check_params",
    "load_model_folder",
    "resolve_checkpoint",
    "save_model_folder",
    "shipped_model_folder",
]
