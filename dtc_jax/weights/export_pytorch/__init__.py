"""A trained model as a folder for PyTorch: `DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)`.

    export_pipeline(open_checkpoint(path), folder)
    open_exported(folder)                         # the way back, exact to the bit

The folder brings its own code (`code_files`), which needs torch, diffusers and transformers and nothing of ours; U-Net,
autoencoder and image encoder are plain diffusers and transformers models.
"""

from dtc_jax.weights.export_pytorch.folder import (
    EXPERIMENT_FILE,
    POSITIONS_FILE,
    export_pipeline,
    exported_config,
    exported_shapes,
    exported_tensors,
    is_exported_folder,
    lost_of_export,
    needed_files,
    networks_in,
    open_exported,
    original_positions,
)
from dtc_jax.weights.export_pytorch.networks import PIPELINE_CLASS, ExportedNetwork

__all__ = [
    "EXPERIMENT_FILE",
    "PIPELINE_CLASS",
    "POSITIONS_FILE",
    "ExportedNetwork",
    "export_pipeline",
    "exported_config",
    "exported_shapes",
    "exported_tensors",
    "is_exported_folder",
    "lost_of_export",
    "needed_files",
    "networks_in",
    "open_exported",
    "original_positions",
]
