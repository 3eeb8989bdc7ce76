"""The command lines that mend a machine, each written once."""

from __future__ import annotations

from s3clip_runtime.doctor.finding import numbers
from s3clip_runtime.doctor.machine import Machine

GPU_EXTRA = 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "s3clip[gpu]"'
CPU_EXTRA = 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "s3clip[cpu]"'
CUDA_LIBRARIES = 'pip install "onnxruntime-gpu[cuda,cudnn]"'
"""onnxruntime's own extras: cuBLAS comes with cuDNN."""

OPENVINO_EXTRA = 'pip install "s3clip[openvino]"'

JETSON_TENSORRT = (
    "sudo apt-get install -y python3-libnvinfer && python3 -m venv --system-site-packages s3clip-env && "
    's3clip-env/bin/pip install "s3clip[cpu]"'
)
NEW_JETPACK = "flash JetPack 7.2 or newer with NVIDIA SDK Manager"
GPU_CONTAINER = "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility,video ..."


def cuda_major(machine: Machine) -> int:
    """The CUDA generation whose packages fit this machine's driver."""
    served = machine.driver.cuda
    return 12 if served is not None and numbers(served) < (13,) else 13


def tensorrt(machine: Machine) -> str:
    """Install TensorRT: a Jetson's comes with JetPack, any other's libraries from NVIDIA's own index."""
    if machine.jetson:
        return JETSON_TENSORRT
    major = cuda_major(machine)
    return (
        f"pip install --extra-index-url https://pypi.nvidia.com tensorrt-cu{major} "
        f'"cuda-python>={major},<{major + 1}"'
    )


def no_tensorrt(machine: Machine) -> str:
    """Remove what pip has installed of TensorRT, and leave TensorRT for RTX."""
    names = [n for n in machine.packages if n.startswith("tensorrt") and not n.startswith("tensorrt-rtx")]
    return f"pip uninstall -y {' '.join(names) or 'tensorrt'}"


def cuda_python(machine: Machine) -> str:
    """Install the CUDA bindings of the driver's generation."""
    major = cuda_major(machine)
    return f'pip install "cuda-python>={major},<{major + 1}"'


def driver(machine: Machine) -> str:
    """Install a driver that serves CUDA 13."""
    if machine.jetson:
        return NEW_JETPACK
    if machine.container:
        return "update the driver of the host to 580 or newer; a container uses the host's"
    if "ubuntu" in machine.os_id:
        return "sudo apt-get install -y nvidia-driver-580 && sudo reboot"
    return "install NVIDIA's driver 580 or newer (https://www.nvidia.com/drivers) && sudo reboot"


def system_package(machine: Machine, debian: str, fedora: str) -> str:
    """Install a package of the operating system."""
    if any(name in machine.os_id for name in ("rhel", "fedora", "centos")):
        return f"sudo dnf install -y {fedora}"
    return f"sudo apt-get update && sudo apt-get install -y {debian}"
