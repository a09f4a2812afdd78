"""The rclpy node: parameters, QoS and messages around ``NewestDepth``."""

import rclpy
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField

from fathom.runtime import Pipeline
from fathom.runtime.artefact.trust import Trust
from fathom.runtime.scale.camera_scale import read_scale

from .newest import NewestDepth

PARAMETERS = {"engine": "", "require_key": "", "scale": "", "protocol": "", "mask_edges": True, "points": False}
PARAMETERS |= {"rectified": False, "compressed": False, "reliable": False}


class DepthNode(Node):
    """``image`` (or ``image/compressed``) and ``camera_info`` in; ``depth`` (32FC1), ``depth_info`` and ``points`` out."""

    def __init__(self):
        super().__init__("fathom_depth")
        value = {name: self.declare_parameter(name, default).value for name, default in PARAMETERS.items()}
        self.pipeline = Pipeline.open(value["engine"], trust=Trust.of(None, value["require_key"]))
        self.pipeline.mask_edges = value["mask_edges"]
        self.pipeline.scale = read_scale(value["scale"]) if value["scale"] else None
        self.get_logger().info(f"{self.pipeline.origin.network}, {self.pipeline.scale.words if self.pipeline.scale else 'metres as the network says them'}")
        protocol = value["protocol"] or None
        reliability = ReliabilityPolicy.RELIABLE if value["reliable"] else ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=reliability)
        self.out = {"depth": self.create_publisher(Image, "depth", qos), "depth_info": self.create_publisher(CameraInfo, "depth_info", qos)}
        self.out["points"] = self.create_publisher(PointCloud2, "points", qos)
        how = {"points": value["points"], "rectified": value["rectified"]}
        self.newest = NewestDepth(lambda photo, camera: self.pipeline.predict(photo, protocol, camera), self.send, self.get_logger().warning, **how)
        kind, topic = (CompressedImage, "image/compressed") if value["compressed"] else (Image, "image")
        self.create_subscription(CameraInfo, "camera_info", self.newest.on_info, qos_profile_sensor_data)
        self.create_subscription(kind, topic, self.newest.on_image, qos_profile_sensor_data)

    def send(self, header, depth, info, cloud):
        """Publish with the picture's own header."""
        depth["data"] = depth["data"].tobytes()
        self.out["depth"].publish(message_of(Image, header, depth))
        if info is not None:
            self.out["depth_info"].publish(message_of(CameraInfo, header, info))
        if cloud is not None:
            cloud["fields"] = [PointField(name=n, offset=o, datatype=t, count=c) for n, o, t, c in cloud["fields"]]
            cloud["data"] = cloud["data"].tobytes()
            self.out["points"].publish(message_of(PointCloud2, header, cloud))


def message_of(kind, header, fields):
    """A message of that type."""
    message = kind()
    message.header = header
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def main():
    """Run the node until it is told to end."""
    rclpy.init()
    node = DepthNode()
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    finally:
        node.newest.close()
        node.pipeline.close()
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
