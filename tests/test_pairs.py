"""One rule for which HR and LR images belong together, whatever they are stored in and whoever asks."""

from __future__ import annotations

import numpy as np
import pytest
from basicsr.utils.registry import DATASET_REGISTRY

from basicsr_effsr.data.pairs import check_sizes, list_pairs, match
from datasets_prep.files import write_png
from datasets_prep.lmdb_maker import make_lmdb
from datasets_prep.pack import make_pack

NAMES = ('a', 'a-b', 'a_b', 'b', 'c')
FORMS = ('folder', 'lmdb', 'pack')


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    """Five pairs at x2, LR names ending in x2, as folders, LMDBs and packs."""
    for i, name in enumerate(NAMES):
        write_png(tmp_path / 'HR' / f'{name}.png', image(16 + 2 * i, 20))
        write_png(tmp_path / 'LR' / f'{name}x2.png', image(8 + i, 10))
    for kind in ('HR', 'LR'):
        make_lmdb(tmp_path / kind, tmp_path / f'{kind}.lmdb')
        make_pack(tmp_path / kind, tmp_path / f'{kind}.pack')
    return tmp_path


def options(root, form: str, **more) -> dict:
    suffix = '' if form == 'folder' else f'.{form}'
    return {
        'name': 'unit',
        'type': 'PackedPairedImageDataset' if form == 'pack' else 'EffSRPairedDataset',
        'phase': 'val',
        'scale': 2,
        'dataroot_gt': str(root / f'HR{suffix}'),
        'dataroot_lq': str(root / f'LR{suffix}'),
        'filename_tmpl': '{}x2',
        'io_backend': {'type': 'lmdb' if form == 'lmdb' else 'disk'},
        **more,
    }


def stems(pairs) -> list[tuple[str, str]]:
    return [tuple(name.rpartition('/')[2].removesuffix('.png') for name in (p.gt, p.lq)) for p in pairs]


def built(opt) -> list[str]:
    data = DATASET_REGISTRY.get(opt['type'])(opt)
    return [data[i]['gt_path'].rpartition('/')[2].removesuffix('.png') for i in range(len(data))]


@pytest.mark.parametrize('form', FORMS)
def test_all_pairs_come_in_the_order_of_the_folder(root, form):
    opt = options(root, form)
    order = ['a-b', 'a', 'a_b', 'b', 'c']  # as a-b.png, a.png, a_b.png sort
    assert stems(list_pairs('datasets.val', opt)) == [(name, f'{name}x2') for name in order]
    assert built(opt) == order


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(
    'text',
    [
        'c.png (24,20,3)\na-b.png (18,20,3)\n',
        '\ufeffc.png (24,20,3)\na-b.png (18,20,3)\n',
        'c.png\t(24,20,3)\r\na-b.png\t(18,20,3)\r\n',
        '\nc.png   \n \t\n  a-b.png\n\n',
    ],
    ids=['plain', 'byte-order mark', 'tabs and CRLF', 'blanks'],
)
def test_a_meta_info_file_chooses_images_and_their_order(root, form, text):
    (root / 'meta.txt').write_bytes(text.encode())
    opt = options(root, form, meta_info_file=str(root / 'meta.txt'))
    assert stems(list_pairs('datasets.val', opt)) == [('c', 'cx2'), ('a-b', 'a-bx2')]
    assert built(opt) == ['c', 'a-b']


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('fault', ['absent', 'twice', 'empty', 'no file', 'encoding'])
def test_a_faulty_meta_info_file_is_named_itself_with_the_line(root, form, fault):
    file = root / 'meta.txt'
    contents = {
        'absent': b'a.png\n\nz.png\n',
        'twice': b'a.png\nb.png\na.png\n',
        'empty': b'\n',
        'encoding': b'\xe9.png',
    }
    if fault in contents:
        file.write_bytes(contents[fault])
    opt = options(root, form, meta_info_file=str(file))
    with pytest.raises((ValueError, OSError)) as error:
        list_pairs('datasets.val', opt)
    assert str(error.value).startswith('datasets.val.meta_info_file: ')
    assert str(file) in str(error.value)
    assert ('line 3 ' in str(error.value)) == (fault in ('absent', 'twice'))
    with pytest.raises((ValueError, OSError)):
        built(opt)


def test_a_line_whose_lr_image_is_missing_is_named(root):
    (root / 'LR' / 'bx2.png').unlink()
    (root / 'meta.txt').write_text('a.png\nb.png\n')
    with pytest.raises(FileNotFoundError, match=r'^x\.meta_info_file: .*LR/bx2\.png .* line 2 '):
        list_pairs('x', options(root, 'folder', meta_info_file=str(root / 'meta.txt')))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('template', ['{}x3', '{', 'x', '{name}', 7])
def test_a_template_that_finds_no_partner_or_is_none_is_refused(root, form, template):
    opt = options(root, form, filename_tmpl=template)
    where = 'dataroot_lq' if template == '{}x3' else 'filename_tmpl'
    with pytest.raises((ValueError, OSError), match=rf'^x\.{where}: '):
        list_pairs('x', opt)
    with pytest.raises((ValueError, OSError)):
        built(opt)


@pytest.mark.parametrize('form', FORMS)
def test_surplus_lr_images_are_refused(root, form):
    opt = options(root, form)
    if form == 'folder':
        (root / 'HR' / 'b.png').unlink()
    else:
        (root / 'HR' / 'b.png').unlink()
        make = make_lmdb if form == 'lmdb' else make_pack
        make(root / 'HR', root / f'HR.{form}', overwrite=True)
    with pytest.raises(ValueError, match=r'^x\.dataroot_lq: '):
        list_pairs('x', opt)


@pytest.mark.parametrize(
    ('option', 'value'), [('meta_info_file', 'meta.txt'), ('filename_tmpl', '{}x2')], ids=['meta', 'template']
)
def test_what_basicsrs_data_set_does_not_read_of_an_lmdb_is_refused(root, option, value):
    opt = options(root, 'lmdb', dataroot_lq=str(root / 'HR.lmdb'), type='PairedImageDataset')
    del opt['filename_tmpl']
    assert len(list_pairs('x', opt)) == 5
    with pytest.raises(ValueError, match=rf'^x\.{option}: '):
        list_pairs('x', {**opt, option: value})


def test_lr_images_made_of_hr_images_need_a_folder_and_our_data_set(root):
    (root / 'meta.txt').write_text('c.png\na.png\n')
    opt = options(root, 'folder', dataroot_lq='bicubic')
    assert set(stems(list_pairs('x', opt))) == {(name, name) for name in NAMES}
    opt['meta_info_file'] = str(root / 'meta.txt')
    (pair, _) = list_pairs('x', opt)
    assert pair.sizes(3) == ((24, 18), (8, 6))
    with pytest.raises(ValueError, match=r'c\.png'):
        pair.sizes(32)
    for form, change in (('lmdb', {}), ('pack', {}), ('folder', {'type': 'PairedImageDataset'})):
        with pytest.raises(ValueError, match=r'^x\.dataroot_lq: '):
            list_pairs('x', options(root, form, dataroot_lq='bicubic', **change))


@pytest.mark.parametrize('text', ['\ufeffa.png\n', 'a.png\t(1,1,3)\n', 'a.png\n\nb.png\n'])
def test_a_meta_info_file_that_basicsr_misreads_is_refused_for_it(root, text):
    (root / 'meta.txt').write_text(text, encoding='utf-8')
    opt = options(root, 'folder', meta_info_file=str(root / 'meta.txt'))
    list_pairs('x', opt)
    with pytest.raises(ValueError, match=r'^x\.meta_info_file: '):
        list_pairs('x', {**opt, 'type': 'PairedImageDataset'})


def test_hr_may_be_larger_by_less_than_a_pixel_of_lr_outside_training_only():
    check_sizes('a', 'b', (31, 29), (10, 9), 3, training=False)
    check_sizes('a', 'b', (30, 27), (10, 9), 3, training=True)
    for size, training in (((31, 27), True), ((33, 27), False), ((29, 27), False)):
        with pytest.raises(ValueError, match=r'^a .*\b3\b.* b '):
            check_sizes('a', 'b', size, (10, 9), 3, training=training)


@pytest.mark.parametrize('form', FORMS)
def test_a_pair_of_another_scale_is_named_in_validation(root, form):
    with pytest.raises(ValueError, match=r'\b3\b'):
        built(options(root, form, scale=3))


def test_what_is_left_over_on_both_sides_is_told():
    found = match(['a', 'b'], ['a2', 'c2'], lambda name: f'{name}2')
    assert (found.pairs, found.lonely, found.surplus) == ([('a', 'a2')], [('b', 'b2')], ['c2'])
