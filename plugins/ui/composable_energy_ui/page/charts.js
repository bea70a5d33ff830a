// Drawings of the playground: the energy of chains as a chart, and chains that move on the plane.

export function drawTrace(place, { steps, low, mid, high }) {
  const good = steps.map((_, i) => i).filter((i) => [low[i], mid[i], high[i]].every(Number.isFinite));
  if (good.length < 2) {
    place.textContent = "There are too few steps with a finite energy for a chart.";
    return;
  }
  const [width, height, left, bottom] = [420, 170, 58, 22];
  const bottomOf = Math.min(...good.map((i) => low[i])), topOf = Math.max(...good.map((i) => high[i]));
  const x = (i) => left + ((steps[i] - steps[good[0]]) / (steps[good.at(-1)] - steps[good[0]])) * (width - left - 6);
  const y = (value) => 6 + (1 - (value - bottomOf) / (topOf - bottomOf || 1)) * (height - bottom - 12);
  const line = (values, order = good) => order.map((i) => `${x(i).toFixed(1)},${y(values[i]).toFixed(1)}`).join(" ");
  const label = (value) => (Math.abs(value) >= 1e4 ? value.toExponential(1) : value.toPrecision(4).replace(/\.?0+$/, ""));
  place.innerHTML = `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="Energy by step">
    <polygon points="${line(high)} ${line(low, [...good].reverse())}" fill="var(--band)"/>
    <polyline points="${line(mid)}" fill="none" stroke="var(--main)" stroke-width="2"/>
    <path d="M${left} 4V${height - bottom}H${width}" fill="none" stroke="var(--line)"/>
    <text x="${left - 5}" y="14" text-anchor="end">${label(topOf)}</text>
    <text x="${left - 5}" y="${height - bottom}" text-anchor="end">${label(bottomOf)}</text>
    <text x="${left}" y="${height - 6}">${steps[good[0]]}</text>
    <text x="${width - 4}" y="${height - 6}" text-anchor="end">step ${steps[good.at(-1)]}</text></svg>`;
}

// The plane: a density, points, and after sampling the paths of the chains as frames.
export class Plane {
  constructor(canvas) {
    this.canvas = canvas;
    this.clear();
  }

  clear() {
    Object.assign(this, { image: null, extent: 3.6, frames: [], frame: 0, chosen: null });
  }

  async density({ image, extent }) {
    this.image = Object.assign(new Image(), { src: image });
    this.extent = extent;
    await this.image.decode();
    this.draw();
  }

  show(frames, frame = frames.length - 1) {
    this.frames = frames;
    this.frame = frame;
    this.draw();
  }

  place([a, b]) {
    const size = this.canvas.width;
    return [((a / this.extent + 1) / 2) * size, ((1 - b / this.extent) / 2) * size];
  }

  draw() {
    const pen = this.canvas.getContext("2d"), size = this.canvas.width;
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, size, size);
    if (this.image?.complete) pen.drawImage(this.image, 0, 0, size, size);
    const points = this.frames[this.frame] ?? [];
    pen.strokeStyle = "#d8431555";
    for (let k = 0; k < points.length; k++) {
      pen.beginPath();
      for (let f = Math.max(0, this.frame - 2); f <= this.frame; f++) pen.lineTo(...this.place(this.frames[f][k]));
      pen.stroke();
    }
    points.forEach((point, k) => {
      const chosen = k === this.chosen;
      pen.beginPath();
      pen.arc(...this.place(point), chosen ? 8 : 4, 0, 7);
      pen.fillStyle = "#d84315";
      pen.fill();
      pen.lineWidth = chosen ? 3 : 1;
      pen.strokeStyle = chosen ? "#000" : "#fff";
      pen.stroke();
      pen.lineWidth = 1;
    });
  }

  // The index of the point nearest to a place, given as shares of width and height.
  nearest(across, down) {
    const size = this.canvas.width, points = this.frames[this.frame] ?? [];
    const distance = (point) => Math.hypot(this.place(point)[0] - across * size, this.place(point)[1] - down * size);
    return points.reduce((best, point, k) => (best === null || distance(point) < distance(points[best]) ? k : best), null);
  }
}
