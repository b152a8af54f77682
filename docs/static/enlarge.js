// A click on a figure shows it as large as the window; another click, or Escape, puts it back.
document.addEventListener("DOMContentLoaded", () => {
  const shrink = () => document.querySelectorAll("img.enlarged").forEach((i) => i.classList.remove("enlarged"));
  document.querySelectorAll(".cell_output img").forEach((image) => {
    image.addEventListener("click", (event) => {
      event.preventDefault();            // without scripts the link around it leads to the image itself
      image.classList.toggle("enlarged");
    });
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && shrink());
});
