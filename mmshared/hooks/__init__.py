from .bank_monitor_hooks import BasisHealthHook, GradientFlowHook, basis_health, basis_spaces
from .orthogonality_loss_hook import OrthogonalityLossHook, orthogonality_loss, orthogonality_spaces

__all__ = [
    'BasisHealthHook', 'GradientFlowHook', 'OrthogonalityLossHook', 'basis_health', 'basis_spaces',
    'orthogonality_loss', 'orthogonality_spaces'
]
