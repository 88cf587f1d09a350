"""Twins: the libraries' networks with a ``sharing`` argument, and networks that the libraries lack."""

from .twins import SharingMixin, make_twins

__all__ = ['SharingMixin', 'make_twins']
