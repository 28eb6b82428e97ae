"""A small classifier whose last hidden layer serves as a feature network without a download."""

from torch import Tensor, nn


class SmallClassifier(nn.Module):
    """Convolutions with batch normalisation, 64 features, and a linear read-out.

    Args:
        side: height and width of the images.
        classes: number of classes.
        width: channels of the first convolution.
        colours: channels C of the images.
    """

    FEATURES = 64

    def __init__(self, side: int, classes: int, width: int = 32, colours: int = 1) -> None:
        super().__init__()
        self.side, self.colours = side, colours
        layers: list[nn.Module] = []
        channels, out = colours, width
        while side > 4:
            layers += [
                nn.Conv2d(channels, out, 3, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels, out, side = out, min(2 * out, 2 * width), side // 2
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(channels * side * side, self.FEATURES), nn.ReLU())
        self.head = nn.Linear(self.FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the last hidden layer, (n, 64), of images (n, C, side, side) in [0, 1]."""
        features: Tensor = self.hidden(self.body(images))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores (n, classes)."""
        scores: Tensor = self.head(self.features(images))
        return scores
