// Lets the browser show MJPEG by itself: nothing to pause, no way back.

export class PictureScreen {
  #looking = 0;

  constructor(picture, { shown, changed, growing }) {
    this.picture = picture;
    this.growing = growing;
    this.playing = true;
    this.live = true;
    this.scrubbable = false;
    this.index = -1;
    this.time = null;
    this.range = [0, 0];
    // Browsers differ in when they say that such a picture is loaded; its size they all know.
    this.#looking = setInterval(() => {
      if (!picture.naturalWidth) return;
      clearInterval(this.#looking);
      this.index = 0;
      shown({ index: 0, time: 0 });
      changed();
    }, 30);
  }

  open(url, end) {
    this.picture.onerror = () => end(new Error("the pictures broke off"));
    this.picture.src = url;
  }

  arrived() {}
  play() {}
  pause() {}
  seek() {}
  step() {}
  follow() {}

  close() {
    clearInterval(this.#looking);
    this.picture.onerror = null;
    this.picture.removeAttribute("src"); // ends the request
  }
}
