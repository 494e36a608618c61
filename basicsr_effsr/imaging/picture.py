"""Image files as arrays and back, with what they carry beside their pixels: alpha, depth, EXIF, ICC profile."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from basicsr_effsr.imaging.header import ORIENTATION, any_size
from basicsr_effsr.imaging.tiff import UNKNOWN_CHANNEL, read_deep_tiff
from basicsr_effsr.utils.errors import UserError, one_line

ENDINGS = {'png': '.png', 'jpeg': '.jpg', 'webp': '.webp', 'tiff': '.tif'}
LARGEST_SIDE = {'jpeg': 65535, 'webp': 16383}  # pixels that the formats can count
DEEP = ('png', 'tiff')  # formats that hold 16 bits
EXIF_IFD, GPS_IFD = 0x8769, 0x8825
TIFF_TEXTS = {0x010F: 'make', 0x0110: 'model', 0x013B: 'artist', 0x8298: 'copyright'}
DESCRIPTIVE = (0x010E, *TIFF_TEXTS, ORIENTATION, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132)  # the rest describes a TIFF


@dataclass
class Picture:
    """An upright image.

    Attributes:
        pixels: (H, W, 3) RGB or (H, W, 1) gray; uint8 or uint16.
        alpha: (H, W) of the same type, None for an opaque image.
        exif: what the file told, orientation 1; None without.
        icc: colour profile, None without.
        lost: what the file told beside and is left out; empty if nothing.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    exif: Image.Exif | None = field(default=None, repr=False)
    icc: bytes | None = field(default=None, repr=False)
    lost: str = ''

    @property
    def bits(self) -> int:
        """Bits per channel, 8 or 16."""
        return 8 * self.pixels.dtype.itemsize


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as they are to be seen, for an EXIF orientation from 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _is_deep(image: Image.Image, data: bytes) -> bool:
    if image.format == 'PNG':
        return data[24] == 16  # bit depth of the header, which Pillow does not tell
    if image.format == 'TIFF' and max(image.tag_v2.get(258, (1,))) == 16:  # type: ignore[attr-defined]
        raise ValueError('its directory is damaged')  # read_deep_tiff did not understand it
    return image.mode.startswith('I;16')


def _decode_deep(data: bytes, image: Image.Image) -> np.ndarray:
    """(H, W, 1 to 4) uint16: gray, gray with alpha, RGB or RGB with alpha."""
    import cv2

    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16:
        raise ValueError('the 16-bit pixels cannot be decoded')
    if found.ndim == 2:
        found = found[..., None]
    clear = image.info.get('transparency') if image.format == 'PNG' else None
    if clear is not None:  # the one colour that is transparent, which OpenCV heeds in some versions
        colours = found[..., 2::-1]
        opaque = (colours != np.asarray(clear, np.uint16)).any(axis=-1, keepdims=True)
        return np.concatenate([colours, opaque * np.uint16(65535)], axis=-1)
    order = [2, 1, 0, 3][: found.shape[2]] if found.shape[2] > 1 else [0]
    if image.format == 'PNG' and data[25] == 4:
        order = [0, 3]  # gray with alpha, which OpenCV widens
    return found[..., order]


def _decode(image: Image.Image, depth: int) -> tuple[np.ndarray, bytes | None, str]:
    """(H, W, 1 to 4) uint8 as above, the colour profile that it is in, and what is lost."""
    icc = image.info.get('icc_profile')
    if depth in (2, 4) and isinstance(image.info.get('transparency'), int) and image.mode == 'L':
        image.info['transparency'] *= 255 // (2**depth - 1)  # Pillow widens the pixels and not this value
    transparent = 'transparency' in image.info or image.mode in ('PA', 'LA', 'La', 'RGBA', 'RGBa')
    if image.mode in ('1', 'L', 'LA', 'La'):
        return np.asarray(image.convert('LA' if transparent else 'L')), icc, ''
    if image.mode == 'CMYK' and icc:
        srgb = ImageCms.createProfile('sRGB')
        try:
            printed = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            converted = ImageCms.profileToProfile(image, printed, srgb, outputMode='RGB')
            assert converted is not None
            return np.asarray(converted), None, ''
        except (OSError, ImageCms.PyCMSError):
            return np.asarray(image.convert('RGB')), None, 'colour profile that does not fit'
    if image.mode not in ('P', 'PA', 'RGB', 'RGBA', 'RGBa', 'RGBX', 'CMYK', 'YCbCr', 'LAB', 'HSV'):
        raise ValueError(f'its pixels are of the kind {image.mode}; convert it to 8 or 16 bits per channel')
    kept = icc if image.mode in ('P', 'PA', 'RGB', 'RGBA', 'RGBa', 'RGBX', 'YCbCr') else None
    return np.asarray(image.convert('RGBA' if transparent else 'RGB')), kept, ''


def _tidy(exif: Image.Exif, from_tiff: bool) -> Image.Exif | None:
    """A copy without what described the old file's layout; None if nothing was said."""
    told = Image.Exif()
    for tag, value in exif.items():
        if tag not in (EXIF_IFD, GPS_IFD, 0xA005) and (not from_tiff or tag in DESCRIPTIVE):
            told[tag] = value
    inner = {tag: exif.get_ifd(tag) for tag in (EXIF_IFD, GPS_IFD)}
    if not (dict(told) or any(inner.values())):
        return None
    for tag, values in inner.items():
        if values:
            told.get_ifd(tag).update(values)
    told[ORIENTATION] = 1
    told.tobytes()  # a value of a wrong type shows here, before the network has run
    return told


def _exif(image: Image.Image | None, data: bytes) -> tuple[Image.Exif | None, int, str]:
    """(what to keep, orientation, what is lost): EXIF is often damaged where the pixels are not.

    Without an image ``data`` is that of a TIFF, whose directory is read as EXIF.
    """
    orientation: Any = 1
    try:
        with warnings.catch_warnings(record=True) as doubts:
            warnings.simplefilter('always')
            if image is None:
                exif = Image.Exif()
                exif.load(data)
            else:
                exif = image.getexif()
            orientation = exif.get(ORIENTATION, 1)
            told = _tidy(exif, image is None or image.format == 'TIFF')
        lost = 'damaged parts of EXIF' if doubts else ''
        if told is None and image is not None and len(image.info.get('exif', b'')) > 20:
            lost = 'damaged EXIF'  # more than an empty directory, and not understood
    except Exception:  # struct.error, KeyError, TypeError ... as the damage may be
        told, lost = None, 'damaged EXIF'
    return told, orientation if orientation in range(1, 9) else 1, lost


def _read_deep_tiff(data: bytes) -> tuple[np.ndarray, int, Image.Exif | None, bytes | None, str] | None:
    deep = read_deep_tiff(data)
    if deep is None:
        return None
    try:
        with Image.open(io.BytesIO(data)) as image:
            told, _, lost = _exif(image, data)
    except (
        UnidentifiedImageError
    ):  # gray with alpha; BigTIFFs in big-endian order, whose EXIF Pillow cannot read either
        told, _, lost = (None, 1, 'EXIF') if b'+' in data[:4] else _exif(None, data)
    return deep.pixels, deep.orientation, told, deep.icc, _and(lost, deep.lost)


def _read_others(data: bytes) -> tuple[np.ndarray, int, Image.Exif | None, bytes | None, str]:
    with Image.open(io.BytesIO(data)) as image:
        if image.format != 'MPO' and getattr(image, 'n_frames', 1) > 1:
            raise ValueError(f'it has {image.n_frames} frames; split it into images')  # type: ignore[attr-defined]
        told, orientation, lost = _exif(image, data)
        image.load()
        if _is_deep(image, data):
            return _decode_deep(data, image), orientation, told, image.info.get('icc_profile'), lost
        pixels, icc, more = _decode(image, data[24] if image.format == 'PNG' else 8)
        if image.format == 'TIFF':
            orientation = 1  # Pillow has turned it
            if 0 in image.tag_v2.get(338, ()):  # type: ignore[attr-defined]
                more = _and(more, UNKNOWN_CHANNEL)
        return pixels, orientation, told, icc, _and(lost, more)


def _and(*parts: str) -> str:
    return ' and '.join(filter(None, parts))


def read(file: Path) -> Picture:
    """:func:`picture_of` a file.

    Raises:
        UserError: as there, or the file cannot be read.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f'{file} cannot be read as an image: {one_line(error)}') from error
    return picture_of(data, str(file))


def picture_of(data: bytes, name: str) -> Picture:
    """An image with all that the file tells, turned upright as its EXIF orientation asks.

    Palettes become RGB, CMYK becomes sRGB through its profile, black and white becomes gray.

    Args:
        data: content of the file.
        name: what messages call it.

    Raises:
        UserError: it is no image, is damaged, has several frames, or has pixels that are not of 8 or 16 bits, or of
            16 bits and neither gray nor RGB.
    """
    try:
        with any_size(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # what is damaged is raised, or told as lost
            pixels, orientation, told, icc, lost = _read_deep_tiff(data) or _read_others(data)
    except Exception as error:  # decoders raise what they like on damaged files, SyntaxError among them
        unknown = isinstance(error, UnidentifiedImageError)
        reason = 'it is of no known kind' if unknown else one_line(error)
        raise UserError(f'{name} cannot be read as an image: {reason}') from error
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    pixels = upright(pixels, orientation)
    if pixels.shape[2] in (2, 4):
        return Picture(np.ascontiguousarray(pixels[..., :-1]), np.ascontiguousarray(pixels[..., -1]), told, icc, lost)
    return Picture(pixels, None, told, icc, lost)


# ---------------------------------------------------------------------- writing


def check_size(kind: str, height: int, width: int) -> None:
    """Refuses sizes that a format cannot count.

    Raises:
        UserError: a side is too long.
    """
    largest = LARGEST_SIDE.get(kind)
    if largest is not None and max(height, width) > largest:
        raise UserError(f'{kind} holds sides of at most {largest} pixels, the result has {width}x{height}; use png')


def _with_size(exif: Image.Exif, height: int, width: int) -> Image.Exif:
    """A copy that states the new size where the old one was stated."""
    copy = Image.Exif()
    copy.load(exif.tobytes())
    inner = copy.get_ifd(EXIF_IFD)
    for tag, value in ((0xA002, width), (0xA003, height)):
        if tag in inner:
            inner[tag] = value
    for tag, value in ((0x0100, width), (0x0101, height)):
        if tag in copy:
            copy[tag] = value
    return copy


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def _deep_png(picture: Picture, exif: Image.Exif | None) -> bytes:
    """A 16-bit PNG; OpenCV writes no profile and no EXIF, so their chunks are put behind the header."""
    import cv2

    pixels = picture.pixels
    if picture.alpha is not None:
        pixels = np.dstack([pixels.repeat(3 // pixels.shape[2], axis=2), picture.alpha])
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]
    done, encoded = cv2.imencode('.png', np.ascontiguousarray(pixels[..., order]))
    if not done:
        raise OSError('OpenCV cannot encode the image')
    data, chunks = encoded.tobytes(), b''
    if picture.icc:
        chunks += _png_chunk(b'iCCP', b'ICC profile\0\0' + zlib.compress(picture.icc))
    if exif is not None:
        chunks += _png_chunk(b'eXIf', exif.tobytes().removeprefix(b'Exif\0\0'))
    return data[:33] + chunks + data[33:]


def _write_tiff(picture: Picture, exif: Image.Exif | None, file: Path) -> None:
    import tifffile

    pixels = picture.pixels
    options: dict[str, Any] = {}
    told: dict[int, Any] = {} if exif is None else dict(exif)
    if picture.alpha is not None:
        pixels, options = np.dstack([pixels, picture.alpha]), {'extrasamples': ['unassalpha']}
    elif pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if 0x011A in told and 0x011B in told:
        options['resolution'] = (float(told[0x011A]), float(told[0x011B]))
        options['resolutionunit'] = told.get(0x0128, 2)
    tifffile.imwrite(
        file,
        pixels,
        photometric='rgb' if picture.pixels.shape[2] == 3 else 'minisblack',
        planarconfig='contig' if pixels.ndim == 3 else None,
        compression='zlib',
        predictor=True,
        byteorder='<',
        iccprofile=picture.icc,
        metadata=None,
        description=_ascii(told[0x010E]) if 0x010E in told else None,
        software=_ascii(told.get(0x0131, '')) or False,
        datetime=str(told[0x0132]) if len(str(told.get(0x0132, ''))) == 19 else None,
        extratags=[(tag, 's', 0, _ascii(told[tag]), True) for tag in TIFF_TEXTS if tag in told],
        **options,
    )
    if exif is not None:
        _append_directories(file, {tag: dict(exif.get_ifd(tag)) for tag in (EXIF_IFD, GPS_IFD)})


def _ascii(text: Any) -> bytes:
    return str(text).encode('utf-8', 'replace')


def _append_directories(file: Path, directories: dict[int, dict[int, Any]]) -> None:
    """Puts EXIF and GPS behind the end of a little-endian TIFF, and names them in a new copy of its directory."""
    with open(file, 'r+b') as stream:
        if stream.read(4) != b'II*\0':
            return  # beyond 4 GiB the layout is another one, which few programs look into for EXIF
        stream.seek(struct.unpack('<I', stream.read(4))[0])
        count = struct.unpack('<H', stream.read(2))[0]
        entries = [stream.read(12) for _ in range(count)]
        for tag, values in directories.items():
            directory = ImageFileDirectory_v2(b'II*\0\0\0\0\0')
            for key, value in values.items():
                if not isinstance(value, dict):
                    directory[key] = value
            if len(directory):
                place = _even_end(stream)
                stream.write(directory.tobytes(place))
                entries.append(struct.pack('<HHII', tag, 4, 1, place))
        place = _even_end(stream)
        entries.sort(key=lambda entry: struct.unpack('<H', entry[:2])[0])
        stream.write(struct.pack('<H', len(entries)) + b''.join(entries) + bytes(4))
        stream.seek(4)
        stream.write(struct.pack('<I', place))


def _even_end(stream: Any) -> int:
    end = stream.seek(0, os.SEEK_END)
    stream.write(bytes(end % 2))
    return end + end % 2


def fitting(picture: Picture, kind: str) -> Picture:
    """The same without a profile of gray where the format makes colours of gray; what is lost says so."""
    gray = picture.pixels.shape[2] == 1
    widened = gray and (kind == 'webp' or (kind == 'png' and picture.bits == 16 and picture.alpha is not None))
    if not picture.icc or picture.icc[16:20] != b'GRAY' or (gray and not widened):
        return picture
    return replace(picture, icc=None, lost=_and(picture.lost, 'colour profile of gray'))


def write(picture: Picture, file: Path, kind: str, quality: int) -> None:
    """Encodes an image into ``file``, whatever the file is called; see ``fitting`` for profiles of gray.

    Args:
        picture: what to write; 16 bits only into PNG and TIFF, alpha not into JPEG.
        file: where; the caller sees to it that this is a temporary name.
        kind: png, jpeg, webp or tiff.
        quality: of JPEG and WebP, 1 to 100; WebP at 100 is lossless.

    Raises:
        OSError: it cannot be written.
    """
    picture = fitting(picture, kind)
    height, width = picture.pixels.shape[:2]
    exif = None if picture.exif is None else _with_size(picture.exif, height, width)
    if kind == 'tiff':
        _write_tiff(picture, exif, file)
        return
    if picture.bits == 16:
        file.write_bytes(_deep_png(picture, exif))
        return
    planes = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
    image = Image.fromarray(planes[..., 0] if planes.shape[2] == 1 else planes)
    options: dict[str, Any] = {}
    if exif is not None:
        options['exif'] = exif.tobytes()
    if picture.icc:
        options['icc_profile'] = picture.icc
    if kind == 'jpeg':
        options |= {'quality': quality, 'subsampling': 0, 'optimize': True}
    elif kind == 'webp':
        options |= {'lossless': True, 'exact': True} if quality == 100 else {'quality': quality}
    image.save(file, {'png': 'PNG', 'jpeg': 'JPEG', 'webp': 'WEBP'}[kind], **options)
