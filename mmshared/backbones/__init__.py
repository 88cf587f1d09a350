import mmdet.models.backbones
import mmdet.registry
import mmpretrain.models.backbones
import mmpretrain.registry

from .shared_backbone import SharedBackboneMixin, share_backbones

share_backbones(mmdet.models.backbones, mmdet.registry.MODELS)
share_backbones(mmpretrain.models.backbones, mmpretrain.registry.MODELS)

__all__ = ['SharedBackboneMixin', 'share_backbones']
