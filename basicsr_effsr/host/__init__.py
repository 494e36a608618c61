"""What this package changes in BasicSR, and the states of its runs. Importing this package loads nothing."""

REGISTRY = 'basicsr.utils.registry'
DEAD_TORCHVISION = 'torchvision.transforms.functional_tensor'
OPTIONS = 'basicsr.utils.options'
REAL_ESRGAN = ('basicsr.models.realesrnet_model', 'basicsr.models.realesrgan_model')
HOOKED = (REGISTRY, OPTIONS, *REAL_ESRGAN)
VERSION = 'basicsr.version'
SERVED = (DEAD_TORCHVISION, VERSION)
