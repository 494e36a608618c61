"""Metadata, dependencies and extras; computes nothing, writes nothing."""

from pathlib import Path
from runpy import run_path

from setuptools import find_packages, setup

# BasicSR is not a dependency: users choose a release or a fork, and pip cannot build its releases on Python 3.13 and
# later. `effsr host install` can.
# The option files are part of the package, so that effsr recipe works without a checkout.
RECIPES = {f'basicsr_effsr.recipes.{kind}': f'options/{kind}' for kind in ('train', 'test', 'papers')}

setup(
    name='basicsr_effsr',
    version=run_path('basicsr_effsr/_version.py')['__version__'],
    description='Efficient super-resolution networks, losses and training methods as a plugin for BasicSR',
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    author='The basicsr_effsr developers',
    keywords='super-resolution, efficient, BasicSR, HASN, DPARN, AGDN, EFRDN, ASID, distillation',
    packages=[
        *find_packages(include=['basicsr_effsr', 'basicsr_effsr.*', 'datasets_prep', 'datasets_prep.*']),
        *RECIPES,
    ],
    package_dir=RECIPES,
    package_data={
        'basicsr_effsr': ['py.typed', '**/*.json', '**/*.html'],
        'datasets_prep': ['*.json'],
        **{package: ['*.yml'] for package in RECIPES},
    },
    python_requires='>=3.10',
    install_requires=[
        'filelock>=3.32',
        'jinja2>=3.0',
        'lmdb>=2.0',
        'numpy',
        'opencv-python>=4.8',
        'pillow>=11.3',
        'platformdirs',
        'pydantic>=2.4',
        'pyyaml',
        'rich>=13',
        'scikit-image',
        'scipy>=1.10',
        'setuptools>=70.1',  # effsr host install builds with it
        'tifffile>=2024.5.22',
        'torch>=2.5',
        'torchvision',
        'typer>=0.16',
    ],
    extras_require={
        'export': ['onnx', 'onnxruntime', 'onnxscript', 'safetensors'],
        'openvino': ['onnx', 'onnxscript', 'openvino'],
        'plots': ['matplotlib'],
        'spandrel': ['spandrel'],
        'dev': [
            'build',
            'fvcore',
            'jsonschema',
            'matplotlib',
            'mypy',
            'onnx',
            'onnxruntime',
            'onnxscript',
            'pytest',
            'pytest-xdist',
            'ruff',
            'safetensors',
            'selenium',
            'setuptools>=68',
            'spandrel',
            'types-PyYAML',
        ],
    },
    entry_points={
        'console_scripts': ['effsr = basicsr_effsr.cli:main'],
        'torch.backends': ['basicsr_effsr = basicsr_effsr._autoload:install'],
    },
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in range(10, 14)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Processing',
        'Typing :: Typed',
    ],
)
