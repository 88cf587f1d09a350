from .twins import SharingMixin, make_twins

__all__ = ['SharingMixin', 'make_twins']
