"""The node's logic without ROS: always the newest picture, one at a time, in a thread of its own."""

import threading

from fathom.runtime import FathomError
from fathom.runtime.ros.messages import camera_of, cloud_fields, depth_fields, photo_of, scaled_info


class NewestDepth:
    """Depth of the newest picture; pictures that come while one is under way replace each other, so depth is never late by a queue.

    Args:
        predict: (photo, intrinsics or None) -> DepthMap.
        publish: called with (header, depth fields, CameraInfo fields or None, cloud fields or None).
        complain: called with the words of each picture's error; the node goes on.
        points: make clouds where the camera is known.
        rectified: the pictures are.
    """

    def __init__(self, predict, publish, complain, points=False, rectified=False):
        self.predict, self.publish, self.complain, self.points, self.rectified = predict, publish, complain, points, rectified
        self.info, self.dropped, self._next, self._open = None, 0, None, True
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="depth", daemon=True)
        self._thread.start()

    def on_info(self, message):
        """Take a CameraInfo; it counts for the pictures after it."""
        self.info = message

    def on_image(self, message):
        """Take an Image or CompressedImage; returns at once."""
        with self._changed:
            self.dropped += self._next is not None
            self._next = (message, self.info)
            self._changed.notify()

    def close(self):
        """End after the picture that is under way."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    def _work(self):
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or not self._open)
                if not self._open:
                    return
                (message, info), self._next = self._next, None
            try:
                photo = photo_of(message)
                height, width = photo.shape[:2]
                depth = self.predict(photo, camera_of(info, width, height, self.rectified) if info is not None else None)
                cloud = cloud_fields(depth, photo) if self.points and depth.intrinsics is not None else None
                told = scaled_info(info, width, height, self.rectified) if info is not None else None
                self.publish(message.header, depth_fields(depth), told, cloud)
            except FathomError as error:
                self.complain(str(error))
            except Exception as error:  # a thread that dies leaves a node that looks alive and says nothing
                self.complain(f"{type(error).__name__}: {error}")
