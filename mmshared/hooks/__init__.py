"""Losses on banks, hooks that monitor them, distillation."""

from .bank_monitor_hooks import BasisHealthHook, GradientFlowHook, LayerSimilarityHook, basis_health, basis_spaces
from .distillation_hook import DistillationHook
from .loss_hook import BankLossHook, LossHook
from .orthogonality_loss_hook import OrthogonalityLossHook, Space, orthogonality_loss, orthogonality_spaces
from .progress_hook import ProgressHook
from .recurrence_loss_hook import RecurrenceLossHook, layer_similarity, recurrence_loss, template_banks
from .train_only_hook import TrainOnlyHook

__all__ = [
    'BankLossHook',
    'BasisHealthHook',
    'DistillationHook',
    'GradientFlowHook',
    'LayerSimilarityHook',
    'LossHook',
    'OrthogonalityLossHook',
    'ProgressHook',
    'RecurrenceLossHook',
    'TrainOnlyHook',
    'basis_health',
    'basis_spaces',
    'layer_similarity',
    'orthogonality_loss',
    'Space',
    'orthogonality_spaces',
    'recurrence_loss',
    'template_banks',
]
