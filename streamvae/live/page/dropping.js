// Files may be dropped anywhere on the page.

/** Have `take` called with each file that is dropped. */
export function takeDropped(take) {
  let entered = 0;
  const files = (event) => event.dataTransfer?.types.includes("Files");
  const dropping = (on) => document.documentElement.classList.toggle("dropping", on);
  addEventListener("dragenter", (event) => {
    if (files(event)) dropping((entered += 1) > 0);
  });
  addEventListener("dragleave", (event) => {
    if (files(event)) dropping((entered -= 1) > 0);
  });
  addEventListener("dragover", (event) => files(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    dropping((entered = 0) > 0);
    for (const file of event.dataTransfer.files) take(file);
  });
}
