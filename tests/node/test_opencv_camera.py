"""Video files and live sources through OpenCV."""

import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

import cv2
import numpy as np
import pytest

from qcnode.cameras.opencv import OpenCvCamera, frames_of, is_live, without_password
from qcnode.errors import CameraError
from tests.fakes import FakeClock, make_ids, make_trigger

PATIENCE_S = 20.0


class ScriptedCapture:
    """A live source whose pictures the test hands out; None pulls the plug."""

    def __init__(self, pictures, *, opens=True):
        self._pictures = pictures
        self._opens = opens
        self.released = False

    def isOpened(self):  # noqa: N802  # OpenCV's name
        return self._opens

    def read(self):
        try:
            picture = self._pictures.get(timeout=PATIENCE_S)
        except queue.Empty:
            picture = None
        return picture is not None, picture

    def release(self):
        self.released = True


class LiveBench:
    """A camera on scripted sources: each opening takes the next one."""

    def __init__(self, *openings, timeout_s=PATIENCE_S):
        self.pictures = queue.Queue()
        self.opened = []
        self._openings = list(openings)
        clock = FakeClock()
        self._ticks = count(1)
        self.camera = OpenCvCamera(
            "rtsp://user:secret@camera/stream",
            name="live",
            timeout_s=timeout_s,
            now=clock.now,
            new_id=make_ids(),
            clock_ns=lambda: next(self._ticks),
            open_capture=self._open,
        )

    def _open(self, _source):
        opens = self._openings.pop(0) if self._openings else True
        self.opened.append(ScriptedCapture(self.pictures, opens=opens))
        return self.opened[-1]

    def show(self, *values):
        for value in values:
            self.pictures.put(None if value is None else np.full((6, 8, 3), value, np.uint8))

    def close(self):
        self.pictures.put(None)
        self.camera._feed._halt.set()
        self.pictures.put(None)
        self.camera.close()


@pytest.fixture
def bench():
    benches = []

    def make(*openings, **options):
        benches.append(LiveBench(*openings, **options))
        return benches[-1]

    yield make
    for made in benches:
        made.close()


def grab_value(bench, at_ns):
    return int(bench.camera.grab(make_trigger(1, at_ns=at_ns)).pixels[0, 0, 0])


def test_a_picture_begun_before_the_trigger_is_never_its_answer(bench):
    live = bench()
    live.show(1, 2, 3, 4, 5)

    # The scripted clock ticks once per reading: the n-th picture began at n.
    assert grab_value(live, at_ns=4) == 5


def test_no_picture_in_time_is_a_camera_error_without_the_password(bench):
    live = bench(timeout_s=0.01)

    with pytest.raises(CameraError, match=r"rtsp://\*\*\*@camera/stream: no picture") as told:
        live.camera.grab(make_trigger(1, at_ns=0))
    assert "secret" not in str(told.value)


def test_a_source_that_goes_away_is_opened_again(bench):
    live = bench(True, False, True)
    live.show(1)
    assert grab_value(live, at_ns=0) == 1
    live.show(None, 7)

    assert grab_value(live, at_ns=2) == 7
    assert [capture.released for capture in live.opened] == [True, True, False]


def test_the_third_picture_with_the_very_same_pixels_is_a_frozen_camera(bench):
    live = bench()
    live.show(1)
    assert grab_value(live, at_ns=0) == 1
    live.show(1)
    assert grab_value(live, at_ns=1) == 1
    live.show(1)
    with pytest.raises(CameraError, match="frozen"):
        grab_value(live, at_ns=2)
    live.show(2)

    assert grab_value(live, at_ns=3) == 2


@pytest.mark.parametrize(
    ("colour", "kind"),
    [
        ((10, 20, 30), np.uint8),
        ((10, 20, 30, 200), np.uint8),  # with alpha
        ((10 << 8, 20 << 8, 30 << 8), np.uint16),
    ],
)
def test_colours_arrive_as_rgb(bench, colour, kind):
    live = bench()
    live.pictures.put(np.full((4, 4, len(colour)), colour, kind))

    frame = live.camera.grab(make_trigger(1, at_ns=0))
    assert frame.pixels[0, 0].tolist() == [30, 20, 10]


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "parts.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (32, 24))
    for value in (0, 100, 200):
        writer.write(np.full((24, 32, 3), value, np.uint8))
    writer.release()
    return path


def test_a_video_gives_each_trigger_its_next_frame_and_is_then_exhausted(video):
    camera = OpenCvCamera(
        str(video), name="video", timeout_s=1.0, now=FakeClock().now, new_id=make_ids()
    )
    values = [camera.grab(make_trigger(seq)).pixels.mean() for seq in (1, 2, 3)]

    assert values == pytest.approx([0, 100, 200], abs=3)
    with pytest.raises(CameraError, match="exhausted"):
        camera.grab(make_trigger(4))
    camera.close()


def test_all_frames_of_a_video_come_as_parts_of_their_own(video):
    frames = list(frames_of(str(video), now=FakeClock().now, new_id=make_ids()))

    assert [frame.part_id for frame in frames] == ["000001", "000002", "000003"]
    assert [frame.pixels.mean() for frame in frames] == pytest.approx([0, 100, 200], abs=3)


def test_what_is_no_video_is_refused_with_its_name(tmp_path):
    path = tmp_path / "notes.avi"
    path.write_bytes(b"no video at all")
    options = {"now": FakeClock().now, "new_id": make_ids()}

    with pytest.raises(CameraError, match=r"notes\.avi"):
        list(frames_of(str(path), **options))
    with pytest.raises(CameraError, match=r"notes\.avi"):
        OpenCvCamera(str(path), name="video", timeout_s=1.0, **options)
    with pytest.raises(CameraError, match="no such file"):
        OpenCvCamera(str(tmp_path / "none.avi"), name="video", timeout_s=1.0, **options)


@pytest.mark.parametrize(
    ("source", "live"),
    [("0", True), ("rtsp://camera/1", True), ("http://camera/mjpg", True), ("parts.mp4", False)],
)
def test_devices_and_urls_are_live_and_files_are_not(source, live):
    assert is_live(source) is live


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("rtsp://u:p@h:554/s?token=x", "rtsp://***@h:554/s"),
        ("http://h/s", "http://h/s"),
        ("/data/parts.mp4", "/data/parts.mp4"),
    ],
)
def test_a_source_is_shown_without_its_secrets(source, shown):
    assert without_password(source) == shown


class MotionJpeg(BaseHTTPRequestHandler):
    """An HTTP camera, as cheap ones are: one JPEG after the other without end."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=part")
        self.end_headers()
        for number in count():
            picture = np.full((48, 64, 3), number * 7 % 256, np.uint8)
            jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
            head = f"--part\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + jpeg + b"\r\n")
            except OSError:
                return
            if self.server.closing.wait(0.01):
                return

    def log_message(self, *_):
        pass


def test_a_real_stream_over_http_is_read(free_port):
    server = ThreadingHTTPServer(("127.0.0.1", free_port()), MotionJpeg)
    server.closing = threading.Event()
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    camera = OpenCvCamera(
        f"http://127.0.0.1:{server.server_port}/",
        name="http",
        timeout_s=PATIENCE_S,
        now=FakeClock().now,
        new_id=make_ids(),
    )
    try:
        frames = [camera.grab(make_trigger(n, at_ns=time.monotonic_ns())) for n in (1, 2)]
        assert frames[0].pixels.shape == (48, 64, 3)
        assert not np.array_equal(frames[0].pixels, frames[1].pixels)
    finally:
        server.closing.set()
        camera.close()
        server.shutdown()
        server.server_close()
        serving.join(PATIENCE_S)
