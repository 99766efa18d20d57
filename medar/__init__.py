"""medar: generating and understanding 3D medical volumes with scale-wise autoregressive models.

The names below are the public API; docs/reference/python.md lists them by task, and
docs/whole_way.py uses them from a data set to evaluated results. Each is imported on first use, so
that `import medar` and `medar --help` are fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medar.version import __version__ as __version__

if TYPE_CHECKING:
    from medar.data.augmentation import Augmentation as Augmentation
    from medar.data.check import check as check
    from medar.data.loading import PreparedDataset as PreparedDataset
    from medar.data.loading import make_loader as make_loader
    from medar.data.loading import set_epoch as set_epoch
    from medar.data.manifest import Manifest as Manifest
    from medar.data.phantoms import write_phantoms as write_phantoms
    from medar.data.plan import Plan as Plan
    from medar.data.planning import plan_data_set as plan_data_set
    from medar.data.prepare import prepare as prepare
    from medar.data.sources import read_manifest as read_manifest
    from medar.errors import MedarError as MedarError
    from medar.evaluation.extractors import register_extractor as register_extractor
    from medar.evaluation.generation.evaluate import evaluate_generation as evaluate_generation
    from medar.evaluation.generation.files import generated_files as generated_files
    from medar.evaluation.generation.files import read_generated as read_generated
    from medar.evaluation.reconstruction.evaluate import evaluate_tokenizer as evaluate_tokenizer
    from medar.evaluation.segmentation.evaluate import (
        evaluate_segmentation as evaluate_segmentation,
    )
    from medar.generator.generator import Generator as Generator
    from medar.generator.mixers import register_mixer as register_mixer
    from medar.generator.settings import GeneratorSettings as GeneratorSettings
    from medar.generator.settings import SamplingSettings as SamplingSettings
    from medar.generator.training import train_generator as train_generator
    from medar.packing.push import push_to_hub as push_to_hub
    from medar.recipes.configs import find_config as find_config
    from medar.segmentation.backbones import Backbone as Backbone
    from medar.segmentation.backbones import register_backbone as register_backbone
    from medar.segmentation.files import segment_files as segment_files
    from medar.segmentation.prediction import segment as segment
    from medar.segmentation.pretext.settings import PretrainSettings as PretrainSettings
    from medar.segmentation.pretext.settings import register_pretext as register_pretext
    from medar.segmentation.pretext.training import pretrain_backbone as pretrain_backbone
    from medar.segmentation.segmenter import Segmenter as Segmenter
    from medar.segmentation.settings import SegmentationSettings as SegmentationSettings
    from medar.segmentation.training import train_segmenter as train_segmenter
    from medar.settings import load_yaml as load_yaml
    from medar.synthesis.region import Box as Box
    from medar.synthesis.synthesizer import Synthesizer as Synthesizer
    from medar.tokenizer.codebooks import Codebook as Codebook
    from medar.tokenizer.codebooks import CodebookSettings as CodebookSettings
    from medar.tokenizer.codebooks import register_codebook as register_codebook
    from medar.tokenizer.decoding import decode_file as decode_file
    from medar.tokenizer.encoding import encode_data_set as encode_data_set
    from medar.tokenizer.pyramid import TokenPyramid as TokenPyramid
    from medar.tokenizer.settings import TokenizerSettings as TokenizerSettings
    from medar.tokenizer.tokenizer import Tokenizer as Tokenizer
    from medar.tokenizer.tokens import TokenDataset as TokenDataset
    from medar.tokenizer.training import train_tokenizer as train_tokenizer
    from medar.tracking import MlflowTracker as MlflowTracker
    from medar.volume import Grid as Grid
    from medar.volume import Volume as Volume
    from medar.volume import read_volume as read_volume
    from medar.volume import resample as resample
    from medar.volume import write_nifti as write_nifti


_MODULES = {
    "medar.data.augmentation": ("Augmentation",),
    "medar.data.check": ("check",),
    "medar.data.loading": ("PreparedDataset", "make_loader", "set_epoch"),
    "medar.data.manifest": ("Manifest",),
    "medar.data.phantoms": ("write_phantoms",),
    "medar.data.plan": ("Plan",),
    "medar.data.planning": ("plan_data_set",),
    "medar.data.prepare": ("prepare",),
    "medar.data.sources": ("read_manifest",),
    "medar.errors": ("MedarError",),
    "medar.evaluation.extractors": ("register_extractor",),
    "medar.evaluation.generation.evaluate": ("evaluate_generation",),
    "medar.evaluation.generation.files": ("generated_files", "read_generated"),
    "medar.evaluation.reconstruction.evaluate": ("evaluate_tokenizer",),
    "medar.evaluation.segmentation.evaluate": ("evaluate_segmentation",),
    "medar.generator.generator": ("Generator",),
    "medar.generator.mixers": ("register_mixer",),
    "medar.generator.settings": ("GeneratorSettings", "SamplingSettings"),
    "medar.generator.training": ("train_generator",),
    "medar.packing.push": ("push_to_hub",),
    "medar.recipes.configs": ("find_config",),
    "medar.segmentation.backbones": ("Backbone", "register_backbone"),
    "medar.segmentation.files": ("segment_files",),
    "medar.segmentation.prediction": ("segment",),
    "medar.segmentation.pretext.settings": ("PretrainSettings", "register_pretext"),
    "medar.segmentation.pretext.training": ("pretrain_backbone",),
    "medar.segmentation.segmenter": ("Segmenter",),
    "medar.segmentation.settings": ("SegmentationSettings",),
    "medar.segmentation.training": ("train_segmenter",),
    "medar.settings": ("load_yaml",),
    "medar.synthesis.region": ("Box",),
    "medar.synthesis.synthesizer": ("Synthesizer",),
    "medar.tokenizer.codebooks": ("Codebook", "CodebookSettings", "register_codebook"),
    "medar.tokenizer.decoding": ("decode_file",),
    "medar.tokenizer.encoding": ("encode_data_set",),
    "medar.tokenizer.pyramid": ("TokenPyramid",),
    "medar.tokenizer.settings": ("TokenizerSettings",),
    "medar.tokenizer.tokenizer": ("Tokenizer",),
    "medar.tokenizer.tokens": ("TokenDataset",),
    "medar.tokenizer.training": ("train_tokenizer",),
    "medar.tracking": ("MlflowTracker",),
    "medar.volume": ("Grid", "Volume", "read_volume", "resample", "write_nifti"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(["__version__", *_MODULE_OF])


def __getattr__(name: str) -> Any:
    # PEP 562: names are imported on first use.
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'medar' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
