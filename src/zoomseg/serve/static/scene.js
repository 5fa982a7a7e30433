// NiiVue, as radiologists have their pictures: a scan, its label map over it, measurements, and a brush.
// https://niivue.github.io/niivue/devdocs/classes/niivue.Niivue.html

import { Niivue } from "./niivue.js";

export const MULTIPLANAR = 3;
export const RENDER = 4;
// NiiVue's drag modes: what the left button does.
export const MOVE = 8;
export const DISTANCE = 2;
export const ELLIPSE = 6;
const WINDOWING = 9;

export const OPACITY = 0.6;
// Colours go to the graphics card as one row of a picture, which may be no longer.
export const MAX_LABEL = 8000;
// The brush's map has a byte for every voxel.
export const MAX_DRAWN_LABEL = 255;

const CROSSHAIR_PX = 1.5;
const CROSSHAIR_COLOUR = [0.35, 0.75, 1, 0.9];
const MEASURE_COLOUR = [1, 0.85, 0.2, 1];
// Air has less; of what is not in Hounsfield units, nothing has.
const SURELY_HOUNSFIELD = -500;
const GRID_LAYOUT = 2;
const ALWAYS = 1;
const OPTIONS = {
  sliceType: MULTIPLANAR,
  multiplanarLayout: GRID_LAYOUT,
  multiplanarShowRender: ALWAYS,
  multiplanarPadPixels: 2,
  backColor: [0, 0, 0, 1],
  fontColor: [0.8, 0.8, 0.8, 1],
  crosshairColor: CROSSHAIR_COLOUR,
  crosshairWidthUnit: "mm",
  rulerColor: MEASURE_COLOUR,
  rulerWidth: 2,
  measureLineColor: MEASURE_COLOUR,
  measureTextColor: MEASURE_COLOUR,
  measureTextHeight: 0.06,
  selectionBoxColor: MEASURE_COLOUR,
  isOrientCube: true,
  isNearestInterpolation: false,
  isRadiologicalConvention: true, // the patient's right is on the left
  sagittalNoseLeft: true, // anterior is on the left
  isResizeCanvas: true,
  dragAndDropEnabled: false,
  dragMode: WINDOWING, // of the right button
  dragModePrimary: MOVE,
  show3Dcrosshair: true,
  loadingText: "",
};

// Red, green, blue and opacity of every value from 0 to the largest.
function lookupTable(organs, shown, largest) {
  const lut = new Uint8ClampedArray(4 * (largest + 1));
  for (const { value, colour } of organs) {
    if (shown.has(value)) lut.set([...colour, 255], 4 * value);
  }
  return lut;
}

// NiiVue's table of a label map's colours. Its shader takes the first 2/256 of a table for what lies beside it,
// so that the background would have the colour of a label where there are many: they come after empty rows.
function labelColours(organs, shown, largest) {
  const empty = Math.ceil((largest + 1) / 126);
  const lut = new Uint8ClampedArray(4 * (empty + largest + 1));
  lut.set(lookupTable(organs, shown, largest), 4 * empty);
  return { lut, min: -empty, max: largest, labels: [] };
}

export class Scene extends Niivue {
  // `handlers`: NiiVue's, such as onLocationChange; `onDistance` gets every line's length in mm, `onEllipse`
  // every ellipse's statistics.
  constructor({ onDistance, onEllipse, ...handlers }) {
    super({ ...OPTIONS, ...handlers });
    this.ellipses = [];
    this.onDistance = onDistance;
    this.onEllipse = onEllipse;
    this.crosshairShown = true;
    this.showing = Promise.resolve();
    this.onDragRelease = (drag) => this.#released(drag);
  }

  get image() {
    return this.volumes[0];
  }

  get labels() {
    return this.volumes[1];
  }

  // This scan and label map, { name, bytes } both, instead of those before; nothing is done if they are no longer
  // wanted. One call after the other: NiiVue adds a volume when it has read it, so that the scan of one call would
  // lie under the labels of another.
  show(scan, labels, organs, shown, isWanted) {
    const showing = this.showing.then(() => (isWanted() ? this.#show(scan, labels, organs, shown) : null));
    this.showing = showing.catch(() => null);
    return showing;
  }

  async #show(scan, labels, organs, shown) {
    this.clearMeasurements();
    this.endDrawing();
    this.volumes = [];
    const image = await this.addVolumeFromUrl({ url: scan.name, name: scan.name, buffer: scan.bytes, colormap: "gray" });
    const Image = image.constructor;
    const overlay = await Image.loadFromUrl({
      url: labels.name,
      name: labels.name,
      buffer: labels.bytes,
      colormap: "gray",
      opacity: OPACITY,
    });
    this.organs = organs;
    this.largest = Math.max(1, ...organs.map((organ) => organ.value));
    overlay.colormapLabel = labelColours(organs, shown, this.largest);
    this.isHounsfield = holdsHounsfield(image);
    this.addVolume(overlay);
    this.slices = null;
  }

  // --- how it is drawn -----------------------------------------------------------------------------

  showOrgans(shown) {
    this.labels.colormapLabel = labelColours(this.organs, shown, this.largest);
    if (this.drawBitmap) this.drawLut = { lut: lookupTable(this.organs, shown, MAX_DRAWN_LABEL), labels: this.drawLut.labels };
    this.updateGLVolume();
  }

  setLabelOpacity(opacity) {
    if (this.drawBitmap) this.setDrawOpacity(opacity);
    else this.setOpacity(1, opacity);
  }

  showCrosshair(on) {
    this.crosshairShown = on;
    this.drawScene();
  }

  // NiiVue's crosshair is as wide as a voxel; ours as wide on the screen in every scan, plane and zoom.
  drawCrosshairs3D(depthTest, alpha, mvp, ...more) {
    if (!this.crosshairShown) return;
    if (mvp) {
      const [, , width] = this.gl.getParameter(this.gl.VIEWPORT);
      const pixelsPerMm = (Math.hypot(mvp[0], mvp[4], mvp[8]) * width) / 2;
      const wanted = (CROSSHAIR_PX * this.uiData.dpr) / pixelsPerMm;
      if (wanted !== this.opts.crosshairWidth) {
        this.opts.crosshairWidth = wanted;
        if (this.crosshairs3D) this.crosshairs3D.mm[0] = NaN; // made anew
      }
    }
    super.drawCrosshairs3D(depthTest, alpha, mvp, ...more);
  }

  // In 3D the body would hide its organs.
  drawImage3D(...given) {
    this.renderShader.use(this.gl);
    this.gl.uniform1f(this.renderShader.uniforms.backOpacity, 0);
    super.drawImage3D(...given);
  }

  drawSceneCore() {
    const drawn = super.drawSceneCore();
    for (const ellipse of this.ellipses ?? []) this.#drawEllipse(ellipse);
    return drawn;
  }

  // --- intensities ---------------------------------------------------------------------------------

  get window() {
    const { cal_min: low, cal_max: high } = this.image;
    return { level: (low + high) / 2, width: high - low };
  }

  setWindow(level, width) {
    this.image.cal_min = level - width / 2;
    this.image.cal_max = level + width / 2;
    this.refreshLayers(this.image, 0);
    this.drawScene();
    this.onIntensityChange(this.image);
  }

  // What NiiVue finds: from the 2nd to the 98th percentile.
  setOwnWindow() {
    const { robust_min: low, robust_max: high } = this.image;
    this.setWindow((low + high) / 2, high - low);
  }

  // NiiVue remembers where on the page a drag began, and not where in the picture, as in every later step.
  handleMouseAction(mode, event, place) {
    super.handleMouseAction(mode, event, place);
    if (mode === WINDOWING) Object.assign(this.uiData, { windowX: place.x, windowY: place.y });
  }

  // NiiVue's changes by 1, whatever the units, and tells nobody.
  windowingHandler(x, y) {
    const { level, width } = this.window;
    const step = width / 250;
    const moved = { x: x - this.uiData.windowX, y: y - this.uiData.windowY };
    this.setWindow(level - moved.y * step, Math.max(step, width + moved.x * step));
    this.uiData.windowX = x;
    this.uiData.windowY = y;
  }

  // --- places --------------------------------------------------------------------------------------

  get place() {
    return [...this.frac2mm(this.scene.crosshairPos, 0, true)].slice(0, 3);
  }

  goTo(mm) {
    this.scene.crosshairPos = this.mm2frac(mm, 0, true);
    this.createOnLocationChange();
    this.drawScene();
  }

  // A place in an organ, in mm: where it is largest, the voxel nearest to the middle. null: it is not there.
  placeIn(value) {
    this.slices ??= countBySlice(this.labels, this.largest);
    const [nx, ny, nz] = this.labels.hdr.dims.slice(1, 4);
    const counts = this.slices.subarray(value * nz, (value + 1) * nz);
    const k = counts.reduce((best, count, i) => (count > counts[best] ? i : best), 0);
    if (!counts[k]) return null;
    const slice = this.labels.img.subarray(k * nx * ny, (k + 1) * nx * ny);
    const found = [];
    for (let n = 0; n < slice.length; n++) if (slice[n] === value) found.push([n % nx, Math.floor(n / nx)]);
    const middle = [0, 1].map((axis) => found.reduce((sum, at) => sum + at[axis], 0) / found.length);
    const away = (at) => Math.hypot(at[0] - middle[0], at[1] - middle[1]);
    const [i, j] = found.reduce((best, at) => (away(at) < away(best) ? at : best));
    return this.labels.hdr.affine.slice(0, 3).map((row) => row[0] * i + row[1] * j + row[2] * k + row[3]);
  }

  // --- measuring -----------------------------------------------------------------------------------

  clearMeasurements() {
    this.ellipses = [];
    this.clearAllMeasurements();
  }

  #released({ fracStart, fracEnd, axCorSag, mmLength }) {
    if (axCorSag > 2 || axCorSag < 0 || fracStart[0] < 0 || fracEnd[0] < 0) return; // not within one plane
    if (this.opts.dragModePrimary === DISTANCE) this.onDistance(mmLength);
    if (this.opts.dragModePrimary !== ELLIPSE) return;
    const ellipse = { start: [...fracStart], end: [...fracEnd], plane: axCorSag };
    const statistics = ellipseStatistics(this.image, ellipse);
    if (statistics === null) return;
    ellipse.position = this.getCurrentSlicePosition(axCorSag);
    ellipse.text = `${shown(statistics.mean)}${this.isHounsfield ? " HU" : ""}, SD ${shown(statistics.sd)}`;
    this.ellipses.push(ellipse);
    this.onEllipse(statistics);
    this.drawScene();
  }

  #drawEllipse({ start, end, plane, position, text }) {
    if (this.opts.sliceType === RENDER || !this.shouldDrawOnCurrentSlice(-1, plane, position)) return;
    const from = this.frac2canvasPosWithTile(start, plane);
    const to = this.frac2canvasPosWithTile(end, plane);
    if (from === null || to === null || from.tileIndex !== to.tileIndex) return;
    const [x, y] = [0, 1].map((axis) => Math.min(from.pos[axis], to.pos[axis]));
    const [width, height] = [0, 1].map((axis) => Math.abs(from.pos[axis] - to.pos[axis]));
    this.gl.viewport(0, 0, this.gl.canvas.width, this.gl.canvas.height);
    this.drawCircle([x, y, width, height], MEASURE_COLOUR, 0.05);
    this.drawTextBelow([x + width / 2, y + height + 2], text, 1, MEASURE_COLOUR);
  }

  // --- correcting ----------------------------------------------------------------------------------

  get canBeDrawn() {
    const same = [1, 2, 3].every((axis) => this.image.hdr.dims[axis] === this.labels.hdr.dims[axis]);
    return same && this.largest <= MAX_DRAWN_LABEL;
  }

  // From here on, the left button paints into a copy of the label map.
  beginDrawing(shown) {
    this.drawLut = { lut: lookupTable(this.organs, shown, MAX_DRAWN_LABEL), labels: new Array(256).fill("") };
    this.setOpacity(1, 0);
    this.loadDrawing(this.labels);
    this.setDrawOpacity(OPACITY);
    this.setDrawingEnabled(true);
  }

  endDrawing() {
    if (!this.drawBitmap) return;
    this.setDrawingEnabled(false);
    this.closeDrawing();
    this.setOpacity(1, OPACITY);
  }

  setBrush(value, voxels) {
    this.opts.penSize = voxels;
    this.setPenValue(value);
  }

  // A disc in the plane. NiiVue's brush is a square that goes on at the opposite side where it leaves the volume.
  drawPt(i, j, k, value, bitmap = null) {
    const [nx, ny, nz] = this.back.dims.slice(1, 4);
    const map = bitmap ?? this.drawBitmap;
    const half = this.drawPenAxCorSag < 0 ? 0 : Math.floor(this.opts.penSize / 2);
    const [di, dj, dk] = [0, 1, 2].map((axis) => (axis === 2 - this.drawPenAxCorSag ? 0 : half));
    for (let z = Math.max(0, k - dk); z <= Math.min(nz - 1, k + dk); z++) {
      for (let y = Math.max(0, j - dj); y <= Math.min(ny - 1, j + dj); y++) {
        for (let x = Math.max(0, i - di); x <= Math.min(nx - 1, i + di); x++) {
          if (Math.hypot(x - i, y - j, z - k) <= half + 0.5) map[x + nx * (y + ny * z)] = value;
        }
      }
    }
  }

  // The copy as NIfTI, compressed.
  async drawnMap() {
    const nifti = await this.labels.saveToDisk("", this.drawBitmap);
    const packed = new Blob([nifti]).stream().pipeThrough(new CompressionStream("gzip"));
    return new Response(packed).blob();
  }
}

function holdsHounsfield({ img, hdr }) {
  const slope = hdr.scl_slope || 1;
  const inter = hdr.scl_inter || 0;
  for (let n = 0; n < img.length; n++) if (slope * img[n] + inter < SURELY_HOUNSFIELD) return true;
  return false;
}

// Voxels of every value in every slice of the file: [value * slices + slice].
function countBySlice({ img, hdr }, largest) {
  const [nx, ny, nz] = hdr.dims.slice(1, 4);
  const counts = new Uint32Array((largest + 1) * nz);
  for (let k = 0, n = 0; k < nz; k++) {
    for (const end = n + nx * ny; n < end; n++) if (img[n] <= largest) counts[img[n] * nz + k]++;
  }
  return counts;
}

// Statistics of the voxels whose centres lie in an ellipse between two corners, given as shares of the volume's sides.
// null: there are none.
export function ellipseStatistics(image, { start, end, plane }) {
  const [across, fixed] = [[[0, 1], 2], [[0, 2], 1], [[1, 2], 0]][plane];
  const dims = image.dimsRAS.slice(1, 4);
  const spacing = image.pixDimsRAS.slice(1, 4);
  const voxel = (share, axis) => share * dims[axis] - 0.5;
  const centre = across.map((axis) => (voxel(start[axis], axis) + voxel(end[axis], axis)) / 2);
  const radius = across.map((axis) => Math.abs(voxel(start[axis], axis) - voxel(end[axis], axis)) / 2);
  const low = across.map((_, n) => Math.max(0, Math.ceil(centre[n] - radius[n])));
  const high = across.map((axis, n) => Math.min(dims[axis] - 1, Math.floor(centre[n] + radius[n])));
  const at = [0, 0, 0];
  at[fixed] = Math.min(dims[fixed] - 1, Math.max(0, Math.round(voxel(start[fixed], fixed))));
  const values = [];
  for (let a = low[0]; a <= high[0]; a++) {
    for (let b = low[1]; b <= high[1]; b++) {
      if (((a - centre[0]) / radius[0]) ** 2 + ((b - centre[1]) / radius[1]) ** 2 > 1) continue;
      at[across[0]] = a;
      at[across[1]] = b;
      values.push(image.getValue(...at));
    }
  }
  if (values.length === 0) return null;
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length;
  const smallest = values.reduce((a, b) => Math.min(a, b));
  const greatest = values.reduce((a, b) => Math.max(a, b));
  const area = values.length * spacing[across[0]] * spacing[across[1]];
  return { mean, sd: Math.sqrt(variance), min: smallest, max: greatest, area_mm2: area, voxels: values.length };
}

function shown(value) {
  return value.toLocaleString("en", { maximumFractionDigits: Math.abs(value) < 10 ? 1 : 0 });
}
