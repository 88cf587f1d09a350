"""The names of our configs, ``mmshared::faster_rcnn_r50_shared.py``, wherever mmengine takes names of configs."""

from functools import wraps
from typing import Any

from mmengine.config import Config
from mmengine.hub import hub
from mmengine.infer import BaseInferencer

from .config import config_path


def _is_own(name: Any) -> bool:
    return isinstance(name, str) and name.startswith('mmshared::')


def take_own_names() -> None:
    """Let ``_base_``, ``Config.fromfile``, ``mmengine.hub.get_config`` and the inferencers take the names of our
    configs.

    An entry in mmengine's list of packages would not do: it refuses names without a folder, and it gives the settings
    of a base config the scope of the package that they come from. Ours are of mmdet's and mmpretrain's scopes.
    """
    fromfile, base_path = Config.fromfile, Config._get_cfg_path
    package_and_path, from_metafile = hub._get_package_and_cfg_path, BaseInferencer._load_model_from_metafile

    @wraps(fromfile)
    def fromfile_or_name(filename: Any, *args: Any, **kwargs: Any) -> Config:
        return fromfile(config_path(filename) if _is_own(filename) else filename, *args, **kwargs)

    @wraps(base_path)
    def base_path_or_name(cfg_path: str, filename: str) -> tuple[str, str | None]:
        return (config_path(cfg_path), None) if _is_own(cfg_path) else base_path(cfg_path, filename)

    @wraps(package_and_path)
    def own_or_listed_package(cfg_path: str) -> tuple[str, str]:
        return ('mmshared', cfg_path.partition('::')[2]) if _is_own(cfg_path) else package_and_path(cfg_path)

    @wraps(from_metafile)
    def from_name_or_metafile(self: BaseInferencer, model: str) -> tuple[Config, str | None]:
        return (Config.fromfile(model), None) if _is_own(model) else from_metafile(self, model)

    Config.fromfile, Config._get_cfg_path = staticmethod(fromfile_or_name), staticmethod(base_path_or_name)
    hub._get_package_and_cfg_path = own_or_listed_package
    BaseInferencer._load_model_from_metafile = from_name_or_metafile
