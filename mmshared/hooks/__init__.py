from .orthogonality_loss_hook import OrthogonalityLossHook, orthogonality_loss, orthogonality_spaces

__all__ = ['OrthogonalityLossHook', 'orthogonality_loss', 'orthogonality_spaces']
