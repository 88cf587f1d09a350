"""Says in one sentence what is wrong with a data set."""

from __future__ import annotations

import os.path as osp
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from mmengine.dataset import BaseDataset
from mmengine.fileio import list_from_file, load
from mmengine.registry import DATASETS

from ..sharing import SharingError
from ..sharing.surgery import first_names
from .config import inner_datasets


def explain_failure(config: Any) -> None:
    """Raise a :class:`SharingError` if the annotations of a data set, or of one in its wrappers, are why it cannot be
    built."""
    for each in inner_datasets(config):
        try:
            dataset = DATASETS.build({**each, 'lazy_init': True})
        except Exception:  # the reason is another
            continue
        if not isinstance(dataset, BaseDataset):
            continue
        try:
            images = dataset.load_data_list()
        except Exception as error:  # the file may hold anything
            reason = f'{type(error).__name__}: {error}'
            raise SharingError(f'The annotations {_broken_file(dataset, error)} cannot be read: {reason}') from error
        if not images:
            raise SharingError(f'The annotations {dataset.ann_file} list no image.')
        _check_classes(dataset, images)
        dataset.data_list = images
        if not dataset.filter_data():
            raise SharingError(
                f'The filter_cfg {dict(dataset.filter_cfg)} leaves none of the {len(images)} images of '
                f'{dataset.ann_file}.'
            )


def _broken_file(dataset: BaseDataset, error: Exception) -> str:
    """The file of annotations that raised an error. VOC has one for each image, and its error does not name it."""
    if isinstance(error, ElementTree.ParseError):
        for name in list_from_file(dataset.ann_file):
            path = osp.join(dataset.sub_data_root, dataset.ann_subdir, f'{name}.xml')
            try:
                ElementTree.parse(path)
            except ElementTree.ParseError:
                return path
    return str(dataset.ann_file)


def check_classes(dataset: Any) -> None:
    """Raise a :class:`SharingError` if all objects of a detection data set, or of one in its wrappers, are of other
    classes than those of its ``metainfo``: mmdet leaves them out without a word."""
    for each in getattr(dataset, 'datasets', None) or filter(None, [getattr(dataset, 'dataset', None)]):
        check_classes(each)
    if isinstance(dataset, BaseDataset):
        _check_classes(dataset, map(dataset.get_data_info, range(len(dataset))))


def _check_classes(dataset: BaseDataset, images: Iterable[dict]) -> None:
    seen = []
    for image in images:
        if image.get('instances', True):  # one with an object is enough; an image for a classifier has no instances
            return
        seen.append(image)
    wanted, there = dataset.metainfo.get('classes') or (), list(_own_classes(dataset, seen))
    if there and not set(there) & set(wanted):
        raise SharingError(
            f'No image of {dataset.ann_file} has an object of the {len(wanted)} classes of metainfo '
            f'({first_names(wanted)}). Its own classes are {first_names(there)}: set metainfo=dict(classes=(...)) of '
            'the data sets to these, and num_classes of the heads to their number.'
        )


def _own_classes(dataset: BaseDataset, images: list[dict]) -> Iterable[str]:
    """The names of classes in the annotations of a data set in the format of COCO or VOC."""
    if images and 'xml_path' in images[0]:
        trees = (ElementTree.parse(image['xml_path']) for image in images)
        return dict.fromkeys(name.text or '' for tree in trees for name in tree.iterfind('object/name'))
    if dataset.ann_file.endswith('.json'):
        return [str(category['name']) for category in load(dataset.ann_file).get('categories', [])]
    return []


def unreadable_image(error: Exception, datasets: Callable[[], Iterable[Any]]) -> str | None:
    """The image whose content an error of a data loader is about, if it is about one.

    Args:
        error (Exception): The error, also one that a worker of the data loader passed on.
        datasets (Callable): Gives the data sets that the image may be of.
    """
    named = re.findall('failed to load image: (.*)', str(error))
    if named:
        return named[-1]  # a worker's error begins with its traceback
    if '!buf.empty()' in str(error):  # OpenCV's, of a file without content, does not name it
        return next((path for dataset in datasets() for path in _image_files(dataset) if osp.getsize(path) == 0), None)
    return None


@contextmanager
def images_named(datasets: Callable[[], Iterable[Any]]) -> Iterator[None]:
    """Turn the error of an image that cannot be decoded into a sentence with its name.

    Args:
        datasets (Callable): Gives the data sets that the image may be of.
    """
    try:
        yield
    except Exception as error:
        image = unreadable_image(error, datasets)
        if image is None:
            raise
        raise SharingError(f'The image {image} cannot be read: it is empty, damaged or not an image.') from error


def _image_files(dataset: Any) -> Iterator[str]:
    inner = getattr(dataset, 'datasets', None) or filter(None, [getattr(dataset, 'dataset', None)])
    for each in inner:
        yield from _image_files(each)
    if hasattr(dataset, 'get_data_info'):
        for i in range(len(dataset)):
            yield dataset.get_data_info(i)['img_path']
