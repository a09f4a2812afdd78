// The viewer of the demo's page: photo against depth with a slider, the error map, and the depth as points that can be turned.
(() => {
  const find = (id) => document.getElementById(id);
  const canvas = find("cloud"), pen = canvas.getContext("2d");
  const names = (photo) => Object.keys(photo.maps);
  let photo = DEMO.photos[0], name = DEMO.groups[0][1][0], points = null, turn = 0.45, tilt = 0.15, zoom = 1;

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const make = (tag, where, text = "") => { const made = document.createElement(tag); made.textContent = text; where.append(made); return made; };

  // Points as x, y, z in metres around their middle, and the distance of that middle from the camera.
  function load() {
    const { w, h, focal, rgb, mm } = photo.cloud, depth = new Uint16Array(bytes(mm[name]).buffer), colours = bytes(rgb);
    const known = Array.from(depth).filter((value) => value > 0).sort((a, b) => a - b);
    const middle = known.length ? known[known.length >> 1] / 1000 : 1, farthest = known.length ? known[Math.floor(known.length * 0.99)] / 1000 : 1;
    const xyz = [], rgbs = [];
    for (let row = 0; row < h; row++) for (let column = 0; column < w; column++) {
      const place = row * w + column, z = depth[place] / 1000;
      if (!z || z > farthest) continue;
      xyz.push((column - (w - 1) / 2) / focal * z, (row - (h - 1) / 2) / focal * z, z - middle);
      rgbs.push(colours[3 * place], colours[3 * place + 1], colours[3 * place + 2]);
    }
    points = { xyz, rgbs, middle, focal: focal / w, steps: focal };
  }

  function draw() {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const wide = canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio)), high = canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    const picture = pen.createImageData(wide, high), near = new Float32Array(wide * high).fill(Infinity);
    const { xyz, rgbs, middle, focal, steps } = points, [ct, st, ca, sa] = [Math.cos(turn), Math.sin(turn), Math.cos(tilt), Math.sin(tilt)];
    const size = wide * focal * 0.8 * zoom;
    for (let i = 0; i < xyz.length; i += 3) {
      const x = ct * xyz[i] + st * xyz[i + 2], back = ct * xyz[i + 2] - st * xyz[i];
      const y = ca * xyz[i + 1] - sa * back, z = ca * back + sa * xyz[i + 1] + middle;
      if (z < 0.05) continue;
      const dot = Math.min(40, Math.max(1, Math.ceil(1.15 * size / steps * (xyz[i + 2] + middle) / z))); // as far apart as its neighbours
      const left = Math.round(wide / 2 + size * x / z - dot / 2), top = Math.round(high / 2 + size * y / z - dot / 2);
      for (let v = Math.max(0, top); v < Math.min(high, top + dot); v++) for (let u = Math.max(0, left); u < Math.min(wide, left + dot); u++) {
        const place = v * wide + u;
        if (z >= near[place]) continue;
        near[place] = z;
        picture.data.set([rgbs[i], rgbs[i + 1], rgbs[i + 2], 255], 4 * place);
      }
    }
    pen.putImageData(picture, 0, 0);
  }

  function slide() {
    const share = find("slider").value;
    find("depth").style.clipPath = `inset(0 0 0 ${share}%)`;
    find("edge").style.left = `${share}%`;
  }

  function show() {
    if (!photo.maps[name]) name = names(photo)[0];
    const map = photo.maps[name];
    find("photo").src = `pictures/${photo.folder}/photo.jpg`;
    find("depth").src = `pictures/${map.file}`;
    find("error").hidden = !map.error;
    if (map.error) find("error").src = `pictures/${map.error}`;
    find("no-error").hidden = Boolean(map.error);
    find("no-error").textContent = name === "true depth" ? "this is the truth" : "no true depth here";
    find("words").textContent = `${photo.title}, ${name}: ${map.words.join("; ")}`;
    find("near").textContent = map.metres ? `${photo.near.toFixed(1)} m` : "near";
    find("far").textContent = map.metres ? `${photo.far.toFixed(1)} m` : "far";
    find("camera").textContent = photo.assumed ? "The camera is not known: a field of view of 60 degrees is assumed." : "The photo's own camera.";
    if (!map.metres) find("camera").textContent += " This network gives no metres: only the shape means something.";
    for (const button of document.querySelectorAll("[data-photo]")) button.setAttribute("aria-pressed", DEMO.photos[button.dataset.photo] === photo);
    for (const button of document.querySelectorAll("[data-map]")) {
      button.setAttribute("aria-pressed", button.dataset.map === name);
      button.disabled = !photo.maps[button.dataset.map];
    }
    load();
    draw();
  }

  DEMO.photos.forEach((item, number) => {
    const button = make("button", find("photos"));
    button.className = "photo";
    button.dataset.photo = number;
    button.setAttribute("aria-label", item.title);
    make("img", button).src = `pictures/${item.folder}/photo.jpg`;
    button.onclick = () => { photo = item; show(); };
  });
  for (const [title, members] of [["", ["true depth"]], ...DEMO.groups]) {
    if (title) make("span", find("maps"), title).className = "faint";
    for (const member of members) {
      const button = make("button", find("maps"), member);
      button.dataset.map = member;
      button.onclick = () => { name = member; show(); };
    }
  }

  const home = () => { turn = 0.45; tilt = 0.15; zoom = 1; draw(); };
  const rotate = (dx, dy) => { turn += dx; tilt = Math.max(-1.5, Math.min(1.5, tilt + dy)); draw(); };
  const magnify = (factor) => { zoom = Math.max(0.3, Math.min(6, zoom * factor)); draw(); };
  canvas.onpointerdown = (event) => canvas.setPointerCapture(event.pointerId);
  canvas.onpointermove = (event) => { if (event.buttons) rotate(event.movementX * 0.008, -event.movementY * 0.008); };
  canvas.ondblclick = home;
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); magnify(Math.exp(-event.deltaY * 0.001)); }, { passive: false });
  canvas.onkeydown = (event) => {
    const act = { ArrowLeft: () => rotate(-0.1, 0), ArrowRight: () => rotate(0.1, 0), ArrowUp: () => rotate(0, 0.1), ArrowDown: () => rotate(0, -0.1),
      "+": () => magnify(1.15), "-": () => magnify(1 / 1.15), Home: home }[event.key];
    if (act) { event.preventDefault(); act(); }
  };
  find("slider").oninput = slide;
  window.addEventListener("resize", draw);
  slide();
  show();
})();
