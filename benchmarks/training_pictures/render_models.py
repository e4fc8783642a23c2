"""Views of textured 3-D models from a turning camera, as animated pictures with alpha.

Usage: render_models.py MODELS OUT [--first N] [--step N]

MODELS is searched for .obj files with their .mtl; OUT gets one animated WebP per model, those that are not there yet.
Needs VTK (pip install vtk).
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import numpy as np
import vtk
from PIL import Image
from vtk.util.numpy_support import vtk_to_numpy

VIEWS, SIDE, DRAWN = 6, 208, 416


def draw_views(model: Path, rng: np.random.Generator) -> list[Image.Image]:
    """The model from ``VIEWS`` directions, cropped to what is drawn in any of them: RGBA, at most ``SIDE`` a side."""
    importer = vtk.vtkOBJImporter()
    importer.SetFileName(str(model))
    importer.SetFileNameMTL(str(model.with_suffix(".mtl")))
    importer.SetTexturePath(str(model.parent))
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(1)
    window.SetAlphaBitPlanes(1)
    window.SetMultiSamples(0)
    window.SetSize(DRAWN, DRAWN)
    renderer = vtk.vtkRenderer()
    renderer.SetBackgroundAlpha(0.0)
    window.AddRenderer(renderer)
    importer.SetRenderWindow(window)
    importer.Update()
    renderer = window.GetRenderers().GetFirstRenderer()
    renderer.SetBackgroundAlpha(0.0)
    _light(renderer, rng)
    _colour(renderer, rng)
    camera = renderer.GetActiveCamera()
    camera.SetViewUp(0, 1, 0)
    low, high = np.array(renderer.ComputeVisiblePropBounds()).reshape(3, 2).T
    centre = (low + high) / 2
    camera.SetFocalPoint(*centre)
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(3, 30))
    turn, rise = np.radians(rng.uniform(5, 14)) * rng.choice([-1, 1]), np.radians(rng.uniform(-3, 3))
    camera.SetViewAngle(rng.uniform(15, 45))
    arrays = []
    for view in range(VIEWS):
        a, e = azimuth + view * turn, elevation + view * rise
        camera.SetPosition(*(centre + np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])))
        if view == 0:
            renderer.ResetCamera()
            distance = camera.GetDistance() * 1.05
        camera.SetPosition(*(centre + distance * np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])))
        renderer.ResetCameraClippingRange()
        window.Render()
        arrays.append(_pixels(window))
    return _cropped(np.stack(arrays))


def _colour(renderer: vtk.vtkRenderer, rng: np.random.Generator) -> None:
    """Materials that do not shine by themselves; most grey ones without a texture in a colour drawn at random."""
    actors = renderer.GetActors()
    actors.InitTraversal()
    for _ in range(actors.GetNumberOfItems()):
        actor = actors.GetNextActor()
        material = actor.GetProperty()
        colour = np.array(material.GetDiffuseColor())
        if actor.GetTexture() is None and np.ptp(colour) < 0.15 and rng.random() < 0.7:
            colour = np.clip(rng.uniform(0.1, 0.9, 3) * rng.uniform(0.5, 1.4), 0.03, 0.95)
            material.SetDiffuseColor(*colour)
        material.SetAmbientColor(*colour)
        material.SetAmbient(0.15)
        material.SetDiffuse(0.9)
        material.SetSpecular(float(rng.uniform(0.0, 0.3)))


def _light(renderer: vtk.vtkRenderer, rng: np.random.Generator) -> None:
    renderer.RemoveAllLights()
    for strength in (rng.uniform(0.6, 0.9), rng.uniform(0.2, 0.45)):
        light = vtk.vtkLight()
        light.SetLightTypeToCameraLight()
        light.SetPosition(*(rng.uniform(-1, 1, 3) + np.array([0, 0.6, 1.0])))
        light.SetFocalPoint(0, 0, 0)
        light.SetIntensity(float(strength))
        renderer.AddLight(light)


def _pixels(window: vtk.vtkRenderWindow) -> np.ndarray:
    """(H, W, 4) uint8."""
    grabber = vtk.vtkWindowToImageFilter()
    grabber.SetInput(window)
    grabber.SetInputBufferTypeToRGBA()
    grabber.ReadFrontBufferOff()
    grabber.Update()
    data = grabber.GetOutput()
    width, height, _ = data.GetDimensions()
    return vtk_to_numpy(data.GetPointData().GetScalars()).reshape(height, width, -1)[::-1].copy()


def _cropped(views: np.ndarray) -> list[Image.Image]:
    down, across = np.nonzero((views[..., 3] > 0).any(0))
    if not len(down):
        return []
    views = views[:, down.min() : down.max() + 1, across.min() : across.max() + 1]
    scale = min(1.0, SIDE / max(views.shape[1:3]))
    size = (max(1, round(views.shape[2] * scale)), max(1, round(views.shape[1] * scale)))
    return [Image.fromarray(v).resize(size, Image.Resampling.BOX) for v in views]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--step", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for model in sorted(arguments.models.rglob("*.obj"))[arguments.first :: arguments.step]:
        name = "_".join(model.relative_to(arguments.models).with_suffix("").parts)
        target = arguments.out / f"{name}.webp"
        if target.exists():
            continue
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        views = draw_views(model, rng)
        if views and min(views[0].size) >= 40 and (np.asarray(views[0])[..., 3] > 127).mean() > 0.12:
            options = {"quality": 78, "method": 4, "minimize_size": True}
            views[0].save(target, save_all=True, append_images=views[1:], **options)


if __name__ == "__main__":
    main()
