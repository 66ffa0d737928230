"""Damage that decoders pass over in silence is found, and no whole image is taken for a damaged one."""

import io
from itertools import product

import cv2
import numpy as np
import pytest
from PIL import Image

from sever.data_loader.image_files import is_damaged, read_grey, scan_images

NOISE = np.random.default_rng(0).integers(0, 256, (80, 203), dtype=np.uint8)
GREY = np.full((40, 57), 128, dtype=np.uint8)  # the grey of pixels without data
SAMPLINGS = {"4:2:0": 0x221111, "4:2:2": 0x211111, "4:1:1": 0x411111, "4:4:0": 0x121111, "4:4:4": 0x111111}
EOI = b"\xff\xd9"


def encoded(image, kind=".jpg", **options):
    names = {name: getattr(cv2, f"IMWRITE_JPEG_{name.upper()}") for name in options}
    return cv2.imencode(kind, image, [part for name in options for part in (names[name], options[name])])[
        1
    ].tobytes()


def saved(image, kind, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def coloured(image):
    return np.dstack([image, image[::-1], np.roll(image, 5)])


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("image", [NOISE, GREY, NOISE[:1, :1], NOISE[:8, :8], NOISE[:17, :33]])
def test_whole_jpegs_of_every_form_are_not_damaged(image, sampling):
    for restarts, optimized, quality in product((0, 1, 3, 7, 300), (0, 1), (10, 95)):
        options = {"rst_interval": restarts, "optimize": optimized, "quality": quality}
        for pixels in (image, coloured(image)):
            jpeg = encoded(pixels, **options, sampling_factor=sampling)
            assert not is_damaged(jpeg), options
    assert not is_damaged(encoded(coloured(image), progressive=1))


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_a_jpeg_has_the_pixels_that_opencv_decodes(sampling, tmp_path):
    path = tmp_path / "x.jpg"
    for image, progressive, quality in product((NOISE, coloured(NOISE), NOISE[:1, :1]), (0, 1), (20, 95)):
        path.write_bytes(encoded(image, progressive=progressive, quality=quality, sampling_factor=sampling))
        assert np.array_equal(read_grey(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))


def test_kinds_of_jpeg_that_are_rare_are_read(tmp_path):
    path = tmp_path / "x.jpg"
    for content in (
        saved_as(np.dstack([coloured(NOISE), NOISE]), "CMYK"),
        encoded(NOISE, rst_interval=3),
        encoded(NOISE).removesuffix(EOI) + bytes(4) + EOI,
        DAMAGES["512 bytes lost"](encoded(NOISE)),
    ):
        path.write_bytes(content)
        assert np.array_equal(read_grey(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))


def saved_as(image, mode):
    file = io.BytesIO()
    Image.frombuffer(mode, image.shape[1::-1], image.tobytes()).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    "end",
    [EOI + b"written by a camera", EOI + bytes(999), EOI + encoded(GREY), b"\xff\xff" + EOI, bytes(4) + EOI],
    ids=["text", "zeros", "another JPEG", "fill bytes", "filled up to whole words"],
)
def test_bytes_that_cameras_add_are_no_damage(end):
    assert not is_damaged(encoded(NOISE).removesuffix(EOI) + end)


def test_what_cameras_and_editors_put_before_the_pixels_is_no_damage():
    exif = Image.Exif()
    exif[0x010E] = "a thumbnail " + encoded(GREY).decode("latin-1").replace("\0", " ")
    extra = {"exif": exif, "icc_profile": EOI * 500, "comment": b"\xff\xda\xff\xdd\x00\x04\x00\x05"}
    assert not is_damaged(saved(coloured(NOISE), "JPEG", **extra))
    assert not is_damaged(saved(coloured(NOISE), "MPO", save_all=True, append_images=[Image.fromarray(GREY)]))
    assert not is_damaged(saved(np.dstack([coloured(NOISE), NOISE]), "TIFF"))


DAMAGES = {
    "512 bytes lost": lambda data: data[: len(data) // 2] + data[len(data) // 2 + 512 :],
    "512 bytes of 255": lambda data: data[:3000] + b"\xff" * 512 + data[3512:],
    "cut off": lambda data: data[: len(data) // 2],
    "cut off shortly before its end": lambda data: data[:-20],
    "cut off, and the marker at its end put back": lambda data: data[: len(data) * 9 // 10] + EOI,
    "pixels doubled": lambda data: data[:5000] + data[3000:],
    "LF made CRLF": lambda data: data[:1500] + data[1500:].replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("restarts", [0, 20, 26, 1000])
def test_jpegs_damaged_in_their_pixels_are_found(damage, restarts):
    for image in (NOISE, coloured(NOISE)):
        jpeg = encoded(image, rst_interval=restarts)
        assert len(jpeg) > 8000
        assert is_damaged(damage(jpeg))


def test_a_jpeg_without_the_last_of_its_blocks_is_found():
    tall, low = encoded(NOISE), encoded(NOISE[:72])
    frame = tall.index(b"\xff\xc0")
    assert is_damaged(low[: frame + 5] + tall[frame + 5 : frame + 7] + low[frame + 7 :])
    assert is_damaged(tall[: frame + 5] + low[frame + 5 : frame + 7] + tall[frame + 7 :])


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {"compression": "tiff_lzw"})]
)
def test_other_images_that_are_cut_off_are_found(kind, options):
    data = saved(NOISE, kind, **options)
    assert not is_damaged(data)
    assert is_damaged(data[: len(data) * 2 // 3])


def test_a_kind_that_pillow_reads_and_training_does_not_is_named_before_it(tmp_path):
    Image.fromarray(NOISE.astype(np.float32)).save(tmp_path / "x.tif")
    Image.fromarray(NOISE).save(tmp_path / "y.tif")
    shapes, (fault,) = scan_images(tmp_path, ["x.tif", "y.tif"])
    assert shapes.tolist() == [[0, 0], [80, 203]]
    assert fault.image == "x.tif"
    assert "expected an image that OpenCV reads, such as a TIFF of 8 or 16 bits" in fault.message


@pytest.mark.parametrize("place", [1000, -10])
def test_a_png_of_which_a_bit_is_flipped_is_found(place):
    png = bytearray(saved(NOISE, "PNG"))
    png[place] ^= 4
    assert is_damaged(bytes(png))


def test_real_sheets_are_whole_and_are_found_damaged(shared_data):
    sheets = sorted((shared_data / "severstal-sample").rglob("*.jpg"))
    sheets += sorted((shared_data / "neu-seg").rglob("*.jpg"))[::100]
    assert [path.name for path in sheets if is_damaged(path.read_bytes())] == []
    for path in sheets[:20]:
        data = path.read_bytes()
        for damage in ("512 bytes lost", "cut off, and the marker at its end put back"):
            assert is_damaged(DAMAGES[damage](data)), path
