from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib

import pytest
import torch
from PIL import Image

from mmalign import media
from mmalign.media import Broken, Limits
from mmalign.types import UserError


def stored(image, kind="PNG", **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def test_numbers_and_sources(tmp_path):
    image = Image.new("RGB", (3, 2), (255, 0, 51))
    (tmp_path / "a.png").write_bytes(stored(image))
    for source in (
        stored(image),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        {"bytes": stored(image), "path": "x"},
        {"path": str(tmp_path / "a.png")},
        image,
    ):
        pixels = media.image(source, Limits())
        assert pixels.shape == (3, 2, 3) and pixels[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_orientation_is_applied():
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    pixels = media.image(stored(image, "PNG", exif=exif), Limits())
    assert pixels.shape == (3, 4, 2) and pixels[0, 0, 1] == 1 and pixels[0].sum() == 1


def test_every_mode_becomes_rgb_and_nothing_turns_black():
    half = media.image(stored(Image.new("RGBA", (1, 1), (255, 0, 0, 0))), Limits())
    assert half.flatten().tolist() == [1.0, 1.0, 1.0]  # transparent is white
    palette = Image.new("P", (1, 1))
    palette.putpalette([10, 20, 30, 0, 0, 0])
    assert media.image(stored(palette, transparency=0), Limits()).flatten().tolist() == [1.0, 1.0, 1.0]
    assert (media.image(stored(palette), Limits()).flatten() * 255).round().tolist() == [10, 20, 30]
    cmyk = media.image(stored(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), Limits())
    assert cmyk[0].mean() > 0.9 and cmyk[1].mean() < 0.1
    deep = Image.frombytes("I;16", (1, 1), struct.pack("<H", 32768))
    assert media.image(stored(deep), Limits())[0, 0, 0].item() == pytest.approx(0.5, abs=0.003)
    assert media.image(stored(Image.new("L", (1, 1), 128)), Limits()).flatten().tolist() == pytest.approx([128 / 255] * 3)


def test_scaled_to_cover_and_cut_in_the_middle():
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (10, 0, 30, 20))
    pixels = media.image(image, Limits(size=(10, 10)))
    assert pixels.shape == (3, 10, 10) and pixels.mean() > 0.95


def refused(source, match, limits=None):
    with pytest.raises(Broken, match=match):
        media.image(source, limits or Limits())


def huge_header():
    """A PNG of 50,000 x 50,000 pixels in 60 bytes."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_reasons(tmp_path, monkeypatch):
    whole = stored(Image.effect_noise((64, 64), 50).convert("RGB"))
    refused(whole[: len(whole) // 2], "not decodable")
    refused(b"<html>not found</html>", "no image")
    refused(b"", "no bytes")
    refused(None, "nothing there")
    refused({"bytes": None, "path": None}, "nothing there")
    refused(7, "got int")
    refused(str(tmp_path / "none.png"), "no such file")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "empty file")
    refused(whole, "takes at most 100", Limits(bytes=100))
    (tmp_path / "a.png").write_bytes(whole)
    refused(tmp_path / "a.png", "takes at most 100", Limits(bytes=100))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded before its size was looked at"))
    refused(whole, "64 x 64 pixels, takes at most 4000", Limits(pixels=4000))
    refused(huge_header(), "pixels")


def test_animated_images_are_refused_or_their_first_frame_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    animated = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
    refused(animated, "animated, 2 frames")
    pixels = media.image(animated, Limits(animated="first"))
    assert pixels[0].min() > 0.9 and pixels[2].max() < 0.1


@pytest.mark.parametrize(("kind", "more"), [("MPO", 1), ("MPO", 2), ("TIFF", 1), ("TIFF", 4)])
@pytest.mark.parametrize("limits", [Limits(), Limits(animated="first")])
def test_further_pictures_and_pages_are_no_animation(kind, more, limits):
    """Phones write a preview or a gain map behind the picture; scanners write pages."""
    data = stored(Image.new("RGB", (16, 8), "red"), kind, save_all=True, append_images=[Image.new("RGB", (16, 8), "blue")] * more)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pixels = media.image(data, limits)
    assert pixels.shape == (3, 8, 16) and pixels[0].min() > 0.9 and pixels[2].max() < 0.1
    words = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    assert words == (["the first of several pages is taken"] if kind == "TIFF" else [])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_every_format_that_moves_is_animated(kind):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "green")]
    refused(stored(frames[0], kind, save_all=True, append_images=frames[1:]), "animated, 3 frames")


def test_videos_say_what_they_need(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="need the package av"):
        media.video(b"x", Limits())


def test_tensors_frames_and_messages_that_name_the_file(tmp_path):
    grey = torch.full((3, 2, 4), 0.5)
    assert media.picture(grey, Limits()).size == (4, 2)
    assert media.image(grey, Limits()).flatten()[0].item() == pytest.approx(0.5, abs=0.003)
    clip = media.footage(torch.linspace(0, 1, 10).view(10, 1, 1, 1).expand(10, 3, 2, 2), Limits(frames=3))
    assert clip.places == [0, 4, 9] and clip.length == 10 and clip.rate is None and clip.frames[-1].min() == 255
    assert len(media.footage([Image.new("RGB", (2, 2))] * 2, Limits(frames=8)).frames) == 2
    for source, match in (([], "without frames"), (torch.zeros(0, 3, 2, 2), "without frames"), (torch.zeros(3, 2, 2), "takes a video")):
        with pytest.raises(Broken, match=match):
            media.footage(source, Limits())
    refused(torch.zeros(2, 3, 3, 3), "takes an image")
    path = tmp_path / "half.png"
    path.write_bytes(stored(Image.effect_noise((64, 64), 50).convert("RGB"))[:500])
    with pytest.raises(UserError, match=r"half\.png: not decodable") as error:
        media.picture(str(path), Limits())
    assert "\n" not in str(error.value)


def written(path, frames: int) -> None:
    """A real video: frame n is grey of level 20 n."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for number in range(frames):
            grey = torch.full((16, 32, 3), 20 * number, dtype=torch.uint8).numpy()
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_a_real_video_is_read_at_its_frames(tmp_path) -> None:
    written(tmp_path / "v.mp4", 9)
    clip = media.footage(tmp_path / "v.mp4", media.Limits(frames=5))
    assert (clip.places, clip.length, clip.rate) == ([0, 2, 4, 6, 8], 9, 4.0)
    assert clip.frames.shape == (5, 3, 16, 32)
    with pytest.raises(Broken, match="9 frames, takes at least 12"):
        media.video(tmp_path / "v.mp4", Limits(frames=12))
    with pytest.raises(Broken, match="32 x 16 pixels, takes at most 500"):
        media.video(tmp_path / "v.mp4", Limits(pixels=500))
    levels = clip.frames.float().mean((1, 2, 3))
    assert (levels - torch.tensor([0.0, 40, 80, 120, 160])).abs().max() < 6
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "v.mp4").read_bytes()[:300])
    with pytest.raises(media.Broken, match=r"cut\.mp4: not decodable"):
        media.footage(tmp_path / "cut.mp4", media.Limits())
