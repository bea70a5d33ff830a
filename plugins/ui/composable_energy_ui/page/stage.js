// The stage: the grid of images or the plane, the image or chain that is chosen on it, and the player of steps.
import { Plane } from "./charts.js";

const $ = (id) => document.getElementById(id);

export class Stage {
  // `chosen` is called with the index of an image or a chain, or with null.
  constructor(chosen) {
    Object.assign(this, { chosen, plane: new Plane($("plane")), result: null, index: null, timer: null });
    $("grid").onload = () => this.fit();
    $("grid").onclick = ({ offsetX, offsetY }) => {
      const { columns, rows } = this.result ?? {}, { clientWidth, clientHeight } = $("grid");
      this.choose(Math.floor((offsetY / clientHeight) * rows) * columns + Math.floor((offsetX / clientWidth) * columns));
    };
    $("plane").onclick = ({ offsetX, offsetY }) =>
      this.choose(this.plane.nearest(offsetX / $("plane").clientWidth, offsetY / $("plane").clientHeight));
    $("stage").onkeydown = (event) => {
      const columns = this.result?.columns ?? 1;
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
      if (!step) return;
      event.preventDefault();
      this.choose(this.index === null ? 0 : this.index + step);
    };
    addEventListener("resize", () => this.fit());
  }

  view(kind) {
    $("grid").hidden = kind !== "pictures";
    $("plane").hidden = kind !== "plane";
  }

  clear() {
    this.pause();
    for (const id of ["player", "chosen"]) $(id).hidden = true;
    Object.assign(this, { result: null, index: null });
    this.plane.chosen = null;
    this.chosen(null);
  }

  async density(event) {
    this.view("plane");
    this.plane.clear();
    await this.plane.density(event);
  }

  points(event) {
    if (event.image) {
      $("grid").src = event.image;
      this.view("pictures");
    } else if (event.points[0]?.length === 2) {
      this.view("plane");
      this.plane.show([event.points]);
    }
  }

  finish(event) {
    this.result = event;
    this.points(event);
    if (event.paths) this.play(event.paths);
  }

  // Enlarges small grids by whole factors.
  fit() {
    const grid = $("grid");
    grid.style.width = `${grid.naturalWidth * Math.max(1, Math.floor(640 / grid.naturalWidth))}px`;
    if (this.index !== null) this.choose(this.index);
  }

  choose(k) {
    if (!this.result || this.result.view === "numbers" || !(k >= 0 && k < (this.result.n ?? this.plane.frames[0].length))) return;
    this.index = k;
    if (this.result.view === "plane") {
      this.plane.chosen = k;
      this.plane.draw();
    } else {
      const { columns, rows } = this.result, grid = $("grid");
      const across = (grid.clientWidth + 2) / columns, down = (grid.clientHeight + 2) / rows;
      const [left, top] = [(k % columns) * across, Math.floor(k / columns) * down];
      Object.assign($("chosen").style, { left: `${left}px`, top: `${top}px`, width: `${across - 4}px`, height: `${down - 4}px` });
      $("chosen").hidden = false;
    }
    this.chosen(k);
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    $("play").textContent = "Play";
  }

  // Plays the paths of the chains, one list of points for each step that is kept.
  play(paths) {
    const last = paths.length - 1, steps = this.result.trace.steps, frame = () => Number($("frame").value);
    const go = (to) => {
      this.plane.show(paths, to);
      $("frame").value = to;
      $("frame-step").textContent = `step ${steps[to] ?? to + 1}`;
    };
    const run = () => {
      clearInterval(this.timer);
      this.timer = setInterval(() => {
        go(Math.min(frame() + 1, last));
        if (frame() === last) this.pause();
      }, 50);
      $("play").textContent = "Pause";
    };
    $("play").onclick = () => {
      if (this.timer) return this.pause();
      if (frame() === last) $("frame").value = 0;
      run();
    };
    $("frame").oninput = () => { this.pause(); go(frame()); };
    $("player").hidden = false;
    Object.assign($("frame"), { max: last, value: 0 });
    run();
  }
}
