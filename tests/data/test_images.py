"""Pictures become the right uint8 squares: decoding every odd kind of file, refusing damaged ones, resizing as Pillow.

Truth comes from the pixels that a file was made of and from direct calls of Pillow; the arithmetic of crops is redone
by hand.
"""

import io
import json
import struct
import zlib
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from train_jax.data import images
from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.images import Preprocess
from train_jax.errors import LoadError

WHITE = (255, 255, 255)
GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "resize.npz"
CLIP_PICTURES = GOLDEN.parent / "clip" / "hf-siglip" / "pictures"


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size and holds a few bytes of it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


# ---------------------------------------------------------------------------------------------------------------------
# Files of every kind


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG", "AVIF"])
def test_decodes_file_formats(kind):
    options = {"WEBP": {"lossless": True}, "GIF": {}}.get(kind, {})
    image = Image.new("RGB", (20, 10), (250, 20, 30))
    actual = images.decode(encoded(image, kind, **options))
    assert (actual.mode, actual.size) == ("RGB", (20, 10))
    near = 2 if kind in ("JPEG", "AVIF") else 0  # they round in another colour space
    assert np.abs(np.asarray(actual, int) - np.asarray(image, int)).max() <= near


def test_decodes_paths_as_bytes(tmp_path):
    image = noise(9, 7)
    file = tmp_path / "a.png"
    image.save(file)
    for source in (file, str(file), file.read_bytes()):
        np.testing.assert_array_equal(images.decode(source), image)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [  # EXIF 2.32, table of tag 0x0112: what the stored picture needs to be seen upright
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: x[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x, 1)),
    ],
)
def test_turns_upright_by_exif(orientation, upright):
    image = noise(12, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    actual = images.decode(encoded(image, exif=exif))
    np.testing.assert_array_equal(actual, upright(np.asarray(image)))


def tiff_header(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF with these (tag, type, count, four bytes) entries."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in sorted(entries))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


def with_exif_chunk(png: bytes, content: bytes) -> bytes:
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content + struct.pack(">I", zlib.crc32(b"eXIf" + content))
    return png[:33] + chunk + png[33:]  # after the header


def test_broken_exif_is_no_broken_picture():
    image = noise(12, 8)
    np.testing.assert_array_equal(images.decode(with_exif_chunk(encoded(image), b"hello")), image)
    cut_off = tiff_header((0x0112, 3, 1, b"\6\0\0\0"))[:-9]
    np.testing.assert_array_equal(images.decode(with_exif_chunk(encoded(image), cut_off[6:])), image)


def test_what_else_stands_in_exif_does_not_keep_a_picture_from_being_turned():
    # ImageWidth is a number; here it is the text "12", with which EXIF cannot be written again.
    exif = tiff_header((0x0100, 2, 3, b"12\0\0"), (0x0112, 3, 1, b"\6\0\0\0"))
    image = noise(12, 8)
    plain, turned = images.decode(encoded(image, "JPEG")), images.decode(encoded(image, "JPEG", exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(plain, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_path_its_bytes_and_its_pil_picture_are_one_picture(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "a"
    file.write_bytes(encoded(noise(12, 8), kind, exif=exif))
    preprocess = Preprocess(8)
    with Image.open(file) as unread, Image.open(file) as read:
        read.load()
        forms = [preprocess(form) for form in (file, file.read_bytes(), unread, read)]
        shown = ImageOps.exif_transpose(read).convert("RGB")
    for form in forms:
        np.testing.assert_array_equal(form, preprocess(np.asarray(shown)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_range(kind):
    exact = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257  # 8-bit shades spread over 16 bits: 255 -> 65535
    actual = np.asarray(images.decode(encoded(Image.fromarray(exact), kind)))
    np.testing.assert_array_equal(actual, np.repeat(np.arange(256).reshape(16, 16, 1), 3, -1))


def test_16_bit_grey_within_one_step():
    shades = np.random.default_rng(0).integers(0, 65536, (16, 16)).astype(np.uint16)
    actual = np.asarray(images.decode(encoded(Image.fromarray(shades))))[..., 0]
    assert np.abs(actual - shades / 257).max() < 1


def test_cmyk_jpeg():
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow: red
    actual = np.asarray(images.decode(encoded(inks, "JPEG", quality=95)), int)
    assert np.abs(actual - (255, 0, 0)).max() <= 3


def test_grey_and_bilevel():
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    np.testing.assert_array_equal(images.decode(encoded(grey)), np.asarray(grey)[..., None].repeat(3, -1))
    bits = grey.convert("1")
    np.testing.assert_array_equal(images.decode(encoded(bits)), np.asarray(bits)[..., None].repeat(3, -1) * 255)


def test_palette_transparency_lies_on_white():
    image = Image.new("P", (4, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2, 1])
    actual = images.decode(encoded(image, transparency=1))
    assert [actual.getpixel((x, 0)) for x in range(4)] == [(255, 0, 0), WHITE, (0, 0, 255), WHITE]


def test_palette_of_several_opacities():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    actual = images.decode(encoded(image, transparency=bytes([255, 0, 51])))
    assert [actual.getpixel((x, 0)) for x in range(3)] == [(255, 0, 0), WHITE, (204, 204, 255)]  # 51 is a fifth


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_lies_on_white(kind):
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[:, 0] = (10, 20, 30, 255)
    pixels[:, 1] = (0, 0, 0, 0)  # black beneath full transparency must not show
    pixels[:, 2] = (0, 100, 200, 102)  # two fifths of the colour, three of white
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    actual = np.asarray(images.decode(encoded(Image.fromarray(pixels), kind, **options)), int)
    np.testing.assert_array_equal(actual[0, :2], [(10, 20, 30), WHITE])
    assert np.abs(actual[0, 2] - (153, 193, 233)).max() <= 1


def test_grey_with_alpha_lies_on_white():
    image = Image.new("LA", (2, 1), (0, 255))
    image.putpixel((1, 0), (0, 0))
    actual = images.decode(encoded(image))
    assert [actual.getpixel((x, 0)) for x in range(2)] == [(0, 0, 0), WHITE]


def test_colour_key_lies_on_white():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    actual = images.decode(encoded(image, transparency=(9, 9, 9)))
    assert [actual.getpixel((x, 0)) for x in range(2)] == [(1, 2, 3), WHITE]


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (6, 5), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(images.decode(data), frames[0])


def test_floating_point_pixels_are_refused():
    with pytest.raises(BrokenSample, match="floating-point"):
        images.decode(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


# ---------------------------------------------------------------------------------------------------------------------
# Damaged files


@pytest.mark.parametrize(
    "data",
    [b"", b"not a picture at all\n" * 50, encoded(noise(64, 64), "JPEG")[:-400], encoded(noise(64, 64))[:2000]],
    ids=["zero-bytes", "text", "truncated-jpeg", "truncated-png"],
)
def test_damaged_files_are_broken_samples(data, tmp_path):
    with pytest.raises(BrokenSample, match="not a readable image"):
        images.decode(data)
    file = tmp_path / "a.jpg"
    file.write_bytes(data)
    with pytest.raises(BrokenSample, match="not a readable image"):
        images.decode(file)


def test_damaged_pil_pictures_are_broken_samples():
    cut_off = Image.open(io.BytesIO(encoded(noise(64, 64), "JPEG")[:-400]))
    with cut_off, pytest.raises(BrokenSample, match="not a readable image .OSError"):
        Preprocess(8)(cut_off)
    with pytest.raises(BrokenSample, match="not a readable image"):
        Preprocess(8)(cut_off)


@pytest.mark.parametrize(
    "nothing",
    [Image.new("RGB", (0, 5)), Image.new("L", (5, 0)), np.zeros((0, 5, 3), np.uint8)],
    ids=["RGB", "L", "array"],
)
def test_pictures_of_no_pixels_are_broken_samples(nothing):
    for mode in ("crop", "squash"):
        with pytest.raises(BrokenSample, match="image 3: [05] x [05] pixels: the image is empty"):
            Preprocess(8, mode).batch([nothing], 3)


@pytest.mark.parametrize("nothing", [None, 7, ["a.png"]])
def test_what_is_no_picture_is_named(nothing):
    jaxtyping.config.update("jaxtyping_disable", True)  # what annotations say is checked in tests alone
    try:
        with pytest.raises(DataError, match="image 0: an image must be a path, .* not (NoneType|int|list)"):
            Preprocess(8).batch([nothing])
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_missing_file_is_a_broken_sample(tmp_path):
    with pytest.raises(BrokenSample, match="nowhere.png"):
        images.decode(tmp_path / "nowhere.png")


def test_limit_of_pixels():
    data = encoded(noise(20, 10))
    assert images.decode(data, max_pixels=200).size == (20, 10)
    with pytest.raises(BrokenSample, match="20 x 10 pixels; at most 199 are decoded"):
        images.decode(data, max_pixels=199)


@pytest.mark.parametrize("side", [9_600, 12_000, 20_000, 60_000])
def test_bombs_are_refused_by_their_header(side):
    # Above Pillow's own two limits (a warning at 89 million, an error at twice that) and below them, one answer.
    with pytest.raises(BrokenSample, match="pixels"):
        images.decode(png_header(side, side))


def test_no_warning_below_the_limit():
    # The largest square that is allowed: Pillow has nothing against it either. Warnings are errors here.
    side = int(images.MAX_PIXELS**0.5)
    assert side * side <= images.MAX_PIXELS
    with Image.open(io.BytesIO(png_header(side, side))) as image:
        assert image.size == (side, side)


# ---------------------------------------------------------------------------------------------------------------------
# Resizing and cropping


@pytest.mark.parametrize(
    ("size", "target"), [((50, 30), (40, 24)), ((30, 50), (24, 40)), ((29, 47), (24, 38)), ((24, 30), (24, 30))]
)
def test_shortest_size(size, target):
    # 24 * 47 / 29 = 38.9: rounded down.
    assert images.shortest_size(*size, 24) == target


def test_resize_to_the_same_size_changes_nothing():
    image = noise(24, 30)
    np.testing.assert_array_equal(Preprocess(24)(image), np.asarray(image)[3:27])


@pytest.mark.parametrize(
    ("size", "corner"),
    # Half of the excess, a half rounded to even as Python's and torchvision's round: 3/2 -> 2, 5/2 -> 2, 1/2 -> 0.
    [((14, 10), (2, 0)), ((13, 10), (2, 0)), ((15, 10), (2, 0)), ((10, 11), (0, 0)), ((10, 17), (0, 4))],
)
def test_center_crop(size, corner):
    image = noise(*size)
    left, top = corner
    np.testing.assert_array_equal(images.center_crop(image, 10), np.asarray(image)[top : top + 10, left : left + 10])


def test_extreme_shapes_do_not_exhaust_memory():
    # Scaled to 224 pixels across, this line would be 89.6 million pixels long.
    with pytest.raises(BrokenSample, match="1 x 400000"):
        Preprocess(224)(Image.new("RGB", (1, 400_000)))


def coordinates(width: int, height: int) -> Image.Image:
    """A picture whose red says the column and whose green says the row."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def random_resized_crop(image, size, rng, *, interpolation="bicubic", **options):
    resampling = getattr(Image.Resampling, interpolation.upper())
    return image.resize((size, size), resampling, box=images.sample_crop(*image.size, rng, **options))


def test_random_resized_crop_stays_in_bounds():
    width, height, scale, ratio = 200, 160, (0.3, 0.7), (3 / 4, 4 / 3)
    picture = coordinates(width, height)
    rng = np.random.default_rng(0)
    areas, aspects = [], []
    for _ in range(300):
        part = np.asarray(random_resized_crop(picture, 64, rng, scale=scale, interpolation="nearest"), int)
        assert part.shape == (64, 64, 3)
        # Nearest pixels of 64 cells: the ends lie half a cell inside the box.
        w, h = ((part[..., axis].max() - part[..., axis].min()) * 64 / 63 for axis in (0, 1))
        areas.append(w * h / (width * height))
        aspects.append(w / h)
    # Rounding moves a side by 1.5 pixels at most, of at least (0.3 * 200 * 160 * 3 / 4) ** 0.5 = 85: 1.8 %.
    assert scale[0] * 0.96 < min(areas) < 0.33 and 0.67 < max(areas) < scale[1] * 1.04
    assert ratio[0] * 0.96 < min(aspects) < 0.78 and 1.28 < max(aspects) < ratio[1] * 1.04


def test_random_resized_crop_is_a_box_of_pillows_resize():
    image = noise(40, 30)
    actual = random_resized_crop(image, 16, np.random.default_rng(3), scale=(0.2, 1.0))
    # The same draws in the same order: area, log of the aspect, left, top.
    rng = np.random.default_rng(3)
    while True:
        area, aspect = 1200 * rng.uniform(0.2, 1.0), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if w <= 40 and h <= 30:
            break
    left, top = rng.integers(40 - w + 1), rng.integers(30 - h + 1)
    direct = image.resize((16, 16), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    np.testing.assert_array_equal(actual, direct)


def test_random_resized_crop_is_determined_by_its_generator():
    image = noise(50, 40)

    def crops(seed):
        rng = np.random.default_rng(seed)
        return np.stack([random_resized_crop(image, 8, rng, scale=(0.2, 1.0)) for _ in range(5)])

    np.testing.assert_array_equal(crops(1), crops(1))
    assert (crops(1) != crops(2)).any()


def test_random_resized_crop_of_everything():
    image = noise(32, 32)
    actual = random_resized_crop(image, 32, np.random.default_rng(0), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    np.testing.assert_array_equal(actual, image)


@pytest.mark.parametrize(
    ("size", "box"), [((200, 20), (86, 0, 113, 20)), ((20, 200), (0, 86, 20, 113))], ids=["wide", "tall"]
)
def test_random_resized_crop_falls_back_to_the_centre(size, box):
    # No part of an allowed aspect has the whole area: 20 pixels by round(20 * 4 / 3) = 27, its corner (200 - 27) // 2.
    image = noise(*size)
    actual = random_resized_crop(image, 16, np.random.default_rng(0), scale=(1.0, 1.0))
    np.testing.assert_array_equal(actual, image.resize((16, 16), Image.Resampling.BICUBIC, box=box))


# ---------------------------------------------------------------------------------------------------------------------
# JPEGs at a smaller scale


def jpeg(image: Image.Image, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(image, "JPEG", quality=95, exif=exif)


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with details of 16 pixels, as large pictures have them, in both directions and all colours."""
    cells = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def whole(size: tuple[int, int]):
    """Chooses all of an image, to be resized to `size`."""
    return lambda width, height: ((0, 0, width, height), size)


@pytest.mark.parametrize(
    ("size", "target", "decoded"),
    [
        ((48, 64), (24, 32), (24, 32)),  # 1/2
        ((47, 64), (24, 32), (47, 64)),  # half of it would be too narrow
        ((48, 63), (24, 32), (48, 63)),  # or too low
        ((95, 127), (24, 24), (48, 64)),  # not 1/4
        ((97, 99), (24, 24), (25, 25)),  # 1/4, with a last pixel that is in part padding
        ((192, 192), (24, 24), (24, 24)),  # 1/8
        ((999, 999), (24, 24), (125, 125)),  # there is none smaller
        ((20, 20), (24, 24), (20, 20)),
    ],
)
def test_jpegs_are_decoded_at_the_smallest_scale_that_has_all_pixels(size, target, decoded):
    picture, region, _ = images.decode_region(jpeg(smooth(*size)), whole(target))
    assert picture.size == decoded
    scale = round(size[0] / decoded[0])
    assert region == (0, 0, size[0] / scale, size[1] / scale)
    assert images.decode_region(jpeg(smooth(*size)), whole(target), may_shrink=False)[0].size == size


def test_a_crop_has_the_scale_that_it_needs():
    data = jpeg(smooth(400, 400))
    for region, scale in {(8, 16, 104, 112): 4, (8, 16, 103, 112): 2, (0, 0, 47, 400): 1, (0, 0, 400, 400): 8}.items():
        picture, scaled, _ = images.decode_region(data, lambda width, height, r=region: (r, (24, 24)))
        assert picture.size == (400 // scale, 400 // scale)
        assert scaled == tuple(edge / scale for edge in region)


def test_no_crop_is_enlarged_that_was_to_be_reduced():
    rng = np.random.default_rng(0)
    for _ in range(60):
        width, height = (int(side) for side in rng.integers(30, 300, 2))
        region = images.sample_crop(width, height, rng, scale=(0.2, 1.0))
        scale = images._choose_scale(region, (16, 16))
        sides = region[2] - region[0], region[3] - region[1]
        assert scale == 1 or min(sides) / scale >= 16
        assert scale == 8 or min(sides) / (2 * scale) < 16


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.3, 1.0)], ids=["whole", "crop"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(256, 192), (203, 262)], ids=["even", "odd"])
def test_smaller_scales_show_the_same(size, orientation, scale, monkeypatch):
    # A shift of half a pixel of the result would be a difference of 7.
    data = jpeg(smooth(*size), orientation)
    augment = images.Augment(Preprocess(48), scale)
    small = augment(data, np.random.default_rng(1)).astype(int)
    monkeypatch.setattr(images, "_choose_scale", lambda region, size: 1)
    full = augment(data, np.random.default_rng(1))
    assert np.abs(small - full).mean() < 1.0


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear_aliased"])
def test_methods_that_drop_pixels_have_all_pixels(interpolation):
    preprocess, data = Preprocess(24, interpolation=interpolation), jpeg(smooth(120, 100))
    np.testing.assert_array_equal(images.Augment(preprocess)(data, np.random.default_rng(0)), preprocess(data))


@pytest.mark.parametrize("mode", ["crop", "crop_floor", "squash"])
def test_other_images_are_those_of_evaluations(mode):
    preprocess = Preprocess(24, mode)
    for data in (jpeg(smooth(47, 60)), encoded(smooth(131, 100), "PNG")):
        np.testing.assert_array_equal(images.Augment(preprocess)(data, np.random.default_rng(0)), preprocess(data))


# ---------------------------------------------------------------------------------------------------------------------
# Preprocess and normalize


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_preprocess_crop_by_hand(interpolation):
    image = noise(60, 40)
    # 40 -> 32 and 60 -> 48, then columns 8 to 40.
    direct = np.asarray(image.resize((48, 32), getattr(Image.Resampling, interpolation.upper())))[:, 8:40]
    np.testing.assert_array_equal(Preprocess(32, interpolation=interpolation)(image), direct)


def test_preprocess_squash_by_hand():
    image = noise(60, 40)
    direct = image.resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(Preprocess(32, mode="squash", interpolation="bilinear")(image), direct)


def _picture(width: int, height: int) -> np.ndarray:  # as tests/golden/make_resize.py draws it
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)


def test_bilinear_aliased_is_big_visions_resize():
    """Pictures that big_vision's own code made, to the last bit."""
    golden = np.load(GOLDEN)
    for name in golden.files:
        place, size = name.split("_")[0], len(golden[name])
        drawn = CLIP_PICTURES / f"{name[-1]}.png" if place == "clip" else _picture(*map(int, place.split("x")))
        resized = Preprocess(size, mode="squash", interpolation="bilinear_aliased")(drawn)
        np.testing.assert_array_equal(resized, golden[name], err_msg=name)


def test_bilinear_aliased_by_brute_force():
    """A loop over pixels, in float64: what is cut to a whole number differs by one where float32 falls just below it."""
    pixels = _picture(13, 9)
    resized = Preprocess(6, mode="squash", interpolation="bilinear_aliased")(pixels)
    for row, column in np.ndindex(6, 6):
        y, x = (row + 0.5) * 9 / 6 - 0.5, (column + 0.5) * 13 / 6 - 0.5
        total = sum(
            pixels[min(max(int(np.floor(y)) + i, 0), 8), min(max(int(np.floor(x)) + j, 0), 12)].astype(float)
            * (y % 1 if i else 1 - y % 1)
            * (x % 1 if j else 1 - x % 1)
            for i in (0, 1)
            for j in (0, 1)
        )
        assert np.all(np.abs(resized[row, column] + 0.5 - total) <= 0.5 + 1e-4)


@pytest.mark.parametrize("margin, offset, floor", [(1, 0, 0), (3, 2, 1), (5, 2, 2), (6, 3, 3), (7, 4, 3)])
def test_odd_margins_of_a_crop(margin, offset, floor):
    """Python's `round` of the half margin, as torchvision; rounded down, as transformers."""
    pixels = _picture(16 + margin, 16)
    for mode, left in (("crop", offset), ("crop_floor", floor)):
        np.testing.assert_array_equal(Preprocess(16, mode)(pixels), pixels[:, left : left + 16])


def test_preprocess_takes_every_form_of_a_picture(tmp_path):
    image = noise(60, 40)
    file = tmp_path / "a.png"
    image.save(file)
    preprocess = Preprocess(16)
    expected = preprocess(image)
    assert expected.dtype == np.uint8 and expected.shape == (16, 16, 3)
    for form in (np.asarray(image), file.read_bytes(), file, str(file)):
        np.testing.assert_array_equal(preprocess(form), expected)


def test_preprocess_converts_pictures_of_other_modes():
    clear = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    np.testing.assert_array_equal(Preprocess(8)(clear), np.full((8, 8, 3), 255))
    grey = Image.new("L", (20, 10), 77)
    np.testing.assert_array_equal(Preprocess(8)(grey), np.full((8, 8, 3), 77))


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)]
)
def test_preprocess_refuses_other_arrays(array):
    with pytest.raises(ValueError, match=r"must be uint8 \[H, W, 3\]"):
        Preprocess(8)(array)


def test_preprocess_refuses_unknown_options():
    with pytest.raises(ValueError, match="'stretch' must be one of crop, crop_floor, squash"):
        Preprocess(8, mode="stretch")
    with pytest.raises(
        ValueError, match="'cubic' must be one of nearest, bilinear, bicubic, lanczos, bilinear_aliased"
    ):
        Preprocess(8, interpolation="cubic")


def test_preprocess_survives_json():
    for given in (Preprocess(224), Preprocess(32, "squash", "lanczos", (0.1, 0.2, 0.3), (0.5, 0.25, 1.0))):
        back = Preprocess.from_json(given.to_json())
        assert back == given and hash(back) == hash(given)


@pytest.mark.parametrize(
    "changes",
    [{"mean": None}, {"std": [1, 0, 1]}, {"mean": [0.5]}, {"mean": "abc"}, {"size": 0}, {"size": 8.5}, {"crop": 1}],
)
def test_a_damaged_preprocess_json_is_named(changes):
    fields = json.loads(Preprocess(8).to_json()) | changes
    for text in (json.dumps(fields), "[1]", "{", "null"):
        with pytest.raises(LoadError, match=r"preprocess\.json is damaged"):
            Preprocess.from_json(text)


def test_normalize_is_the_formula():
    x = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    formula = (x.astype(np.float64) / 255 - images.CLIP_MEAN) / images.CLIP_STD
    for array in (x, jnp.asarray(x), x[0]):
        actual = images.normalize(array, images.CLIP_MEAN, images.CLIP_STD)
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, formula if array.ndim == 4 else formula[0], rtol=0, atol=1e-6)


def test_normalize_of_known_values():
    # Black, half and white with mean and deviation 1/2 are -1, 0 and 1 (up to 1/255).
    x = np.array([[[0] * 3, [255] * 3]], np.uint8)
    np.testing.assert_allclose(images.normalize(x, (0.5,) * 3, (0.5,) * 3), [[[-1.0] * 3, [1.0] * 3]], atol=1e-6)


def test_pictures_that_other_programs_draw_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n")
    with pytest.raises(BrokenSample, match="EPS is a vector format"):
        images.decode(tmp_path / "a.png")
