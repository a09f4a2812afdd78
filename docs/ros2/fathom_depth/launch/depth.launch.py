"""Start the node beside a camera: ros2 launch fathom_depth depth.launch.py engine:=/plans/evp.plan camera:=/camera."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare


def generate_launch_description():
    """Arguments: ``engine``, ``camera`` (namespace of image_raw and camera_info)."""
    camera = LaunchConfiguration("camera")
    config = PathJoinSubstitution([FindPackageShare("fathom_depth"), "config", "depth.yaml"])
    names = {"image": "image_raw", "image/compressed": "image_raw/compressed", "camera_info": "camera_info"}
    names |= {"depth": "depth/image_raw", "depth_info": "depth/camera_info", "points": "depth/points"}
    node = Node(
        package="fathom_depth",
        executable="depth_node",
        name="fathom_depth",
        parameters=[config, {"engine": LaunchConfiguration("engine")}],
        remappings=[(name, PathJoinSubstitution([camera, topic])) for name, topic in names.items()],
    )
    return LaunchDescription([DeclareLaunchArgument("engine"), DeclareLaunchArgument("camera", default_value="/camera"), node])
