// NiiVue by way of ipyniivue's front end, an anywidget module: it talks to "models" with get, set, on and off.
// In Jupyter they mirror Python objects; here they are the plain objects below.
// https://anywidget.dev/en/afm/

import frontEnd from "./niivue.js";

class Model {
  constructor(values) {
    this.values = values;
    this.listeners = new Map();
    // What the front end finds here keeps it from copying every voxel back to a Python that is not there.
    this._comm_live = false;
  }
  get(name) {
    return this.values[name];
  }
  set(name, value) {
    this.values[name] = value;
  }
  change(name, value) {
    this.set(name, value);
    this.emit(`change:${name}`);
  }
  on(event, listener) {
    const known = this.listeners.get(event) ?? [];
    this.listeners.set(event, [...known, listener]);
  }
  off(event, listener) {
    const known = this.listeners.get(event) ?? [];
    this.listeners.set(event, listener ? known.filter((l) => l !== listener) : []);
  }
  emit(event, ...values) {
    for (const listener of this.listeners.get(event) ?? []) listener(...values);
  }
  save_changes() {}
  send_sync_message() {}
}

class Volume extends Model {
  constructor(id, name, data, more) {
    super({
      id,
      name,
      data: new DataView(data),
      path: {},
      url: "",
      paired_img_path: {},
      paired_img_url: "",
      paired_img_data: null,
      colormap: "gray",
      opacity: 1,
      cal_min: null,
      cal_max: null,
      cal_min_neg: null,
      cal_max_neg: null,
      colormap_negative: "",
      colormap_label: null,
      colormap_type: 0,
      colormap_invert: false,
      colorbar_visible: false,
      frame_4d: 0,
      modulation_image: null,
      modulate_alpha: 0,
      ...more,
    });
  }
}

class Scene extends Model {
  constructor(opts, told) {
    super({
      opts,
      height: "", // the page's style sheet says
      volumes: [],
      meshes: [],
      scene: null,
      graph: null,
      draw_lut: null,
      draw_opacity: 0,
      draw_fill_overwrites: false,
      background_masks_overlays: false,
      overlay_outline_width: 0,
      overlay_alpha_shader: 1,
      this_model_id: "",
    });
    this.known = new Map();
    this.told = told;
    this.loaded = () => {};
    this.widget_manager = { get_model: async (id) => this.known.get(id) };
  }
  send({ event, data }) {
    if (event === "image_loaded") this.loaded(data.id);
    this.told[event]?.(data);
  }
  command(type, ...data) {
    this.emit("msg:custom", { type, data }, []);
  }
  // These volumes instead of those before, the first beneath the others; done when they can be seen.
  async show(volumes) {
    this.replace([]);
    const last = volumes.at(-1).get("id");
    const seen = new Promise((resolve, reject) => {
      this.loaded = (id) => id === last && resolve();
      // The front end loads in a promise of its own that nobody holds.
      window.addEventListener("unhandledrejection", ({ reason }) => reject(reason), { once: true });
    });
    this.replace(volumes);
    await seen;
  }
  replace(volumes) {
    this.known = new Map(volumes.map((volume) => [volume.get("id"), volume]));
    this.change(
      "volumes",
      volumes.map((volume) => `IPY_MODEL_${volume.get("id")}`),
    );
  }
}

// NiiVue in an element, which gives it its size. `told`: functions by the name of what happens, as
// `location_change`. Call it once for a page: the front end has one NiiVue.
export async function createScene(element, opts, told) {
  const scene = new Scene(opts, told);
  await frontEnd.initialize({ model: scene });
  await frontEnd.render({ model: scene, el: element });
  return scene;
}

export { Volume };
