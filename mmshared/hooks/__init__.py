from .bank_monitor_hooks import BasisHealthHook, GradientFlowHook, basis_health, basis_spaces
from .orthogonality_loss_hook import OrthogonalityLossHook, orthogonality_loss, orthogonality_spaces
from .train_only_hook import TrainOnlyHook

__all__ = [
    'BasisHealthHook', 'GradientFlowHook', 'OrthogonalityLossHook', 'TrainOnlyHook', 'basis_health', 'basis_spaces',
    'orthogonality_loss', 'orthogonality_spaces'
]
